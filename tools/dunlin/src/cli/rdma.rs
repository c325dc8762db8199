//! What an operator may decide about RDMA: the flags of `send` and of `receive`.

use clap::{Args, ValueEnum};
use dunlin_engine::pin_budget::PinBudget;
use dunlin_vmm::size::parse_size;
use serde::{Deserialize, Serialize};

use super::values::{pin_budget, pin_budget_text};

/// Choices for lanes over RDMA. What is not said follows from the address that is dialled or
/// listened at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Args)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RdmaChoices {
    /// The RDMA device, as in mlx5_0; an error if another one leads to the address [default:
    /// whichever does]
    #[arg(
        long = "rdma-device",
        value_name = "NAME",
        help_heading = "RDMA options"
    )]
    pub(crate) device: Option<String>,
    /// The device's port, counted from 1 [default: the one that leads to the address]
    #[arg(long = "rdma-port", value_name = "N", help_heading = "RDMA options", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) port: Option<u8>,
    /// The entry of the port's table of addresses [default: the one of the IP address]
    #[arg(
        long = "rdma-gid-index",
        value_name = "N",
        help_heading = "RDMA options"
    )]
    pub(crate) gid_index: Option<u8>,
    /// The traffic class of packets: for RoCE the DSCP mark times four [default: from --tos where
    /// there is one, else the system's]
    #[arg(long = "rdma-tos", value_name = "N", help_heading = "RDMA options")]
    pub(crate) traffic_class: Option<u8>,
    /// The service level (InfiniBand) or priority (RoCE) [default: the route's]
    #[arg(long = "rdma-sl", value_name = "N", help_heading = "RDMA options", value_parser = clap::value_parser!(u8).range(0..16))]
    pub(crate) service_level: Option<u8>,
    /// The entry of the port's table of partition keys [default: the route's]
    #[arg(long = "rdma-pkey", value_name = "N", help_heading = "RDMA options")]
    pub(crate) pkey_index: Option<u16>,
    /// When a packet is sent again: after 4.096 us times two to this power; seven times that, at
    /// most four times as long, and a dead path is noticed [default: 14, 67 ms]
    #[arg(long = "rdma-ack-timeout", value_name = "N", help_heading = "RDMA options", value_parser = clap::value_parser!(u8).range(1..=20))]
    pub(crate) ack_timeout: Option<u8>,
    /// The most bytes under way on a lane; a request has half of it at most [default: 32MiB; with
    /// rxe 4MiB, or 48 packets before Linux 6.12]
    #[arg(long = "rdma-window", value_name = "SIZE", help_heading = "RDMA options", value_parser = parse_size)]
    pub(crate) window: Option<u64>,
    /// How lanes wait for the device [default: adaptive]
    #[arg(
        long = "poll",
        value_enum,
        value_name = "HOW",
        help_heading = "RDMA options"
    )]
    pub(crate) poll: Option<PollChoice>,
    /// The source registers memory for on-demand paging: nothing of the guest is pinned there, and
    /// the device asks for pages as it reads them; for devices that can. The source's --pin-budget
    /// is unlimited then, unless it is a size
    #[arg(long = "rdma-odp", help_heading = "RDMA options")]
    pub(crate) on_demand_paging: bool,
    /// The most guest memory that is registered with the device, and so pinned, at once: a size of
    /// at least 8MiB, unlimited, or auto; the smaller one of both sides counts [default: auto, which
    /// heeds the limit on locked memory and leaves a quarter of the memory that is free]
    #[arg(long = "pin-budget", value_name = "SIZE", help_heading = "RDMA options", value_parser = pin_budget)]
    pub(crate) pin_budget: Option<PinBudget>,
}

/// How a lane waits for its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PollChoice {
    /// It looks again and again: the shortest wait, for a whole processor a lane
    Spin,
    /// It sleeps until the device interrupts
    Event,
    /// It spins for a while, then sleeps
    Adaptive,
}

impl RdmaChoices {
    /// The source's budget. With on-demand paging it pins no guest memory, and so has none to
    /// spare it for, unless a size was named.
    pub(crate) fn source_budget(&self) -> PinBudget {
        match self.pin_budget.unwrap_or_default() {
            PinBudget::Auto if self.on_demand_paging => PinBudget::Unlimited,
            budget => budget,
        }
    }

    /// The same choices on another command line.
    pub(crate) fn as_arguments(&self) -> Vec<String> {
        let number = |value: Option<u16>| value.map(|value| value.to_string());
        let byte = |value: Option<u8>| number(value.map(u16::from));
        let poll = self.poll.and_then(|poll| poll.to_possible_value());
        let flags = [
            ("rdma-device", self.device.clone()),
            ("rdma-port", byte(self.port)),
            ("rdma-gid-index", byte(self.gid_index)),
            ("rdma-tos", byte(self.traffic_class)),
            ("rdma-sl", byte(self.service_level)),
            ("rdma-pkey", number(self.pkey_index)),
            ("rdma-ack-timeout", byte(self.ack_timeout)),
            ("rdma-window", self.window.map(|bytes| bytes.to_string())),
            ("poll", poll.map(|value| value.get_name().to_owned())),
            ("pin-budget", self.pin_budget.map(pin_budget_text)),
        ];
        let given = flags.into_iter().filter_map(|(flag, value)| {
            let value = value?;
            Some(format!("--{flag}={value}"))
        });
        let paging = self.on_demand_paging.then(|| "--rdma-odp".to_owned());
        given.chain(paging).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        choices: RdmaChoices,
    }

    #[test]
    fn what_pins_nothing_has_no_budget_but_a_named_one() {
        let budget = |on_demand_paging, pin_budget| {
            let choices = RdmaChoices {
                on_demand_paging,
                pin_budget,
                ..RdmaChoices::default()
            };
            choices.source_budget()
        };
        assert_eq!(budget(false, None), PinBudget::Auto);
        assert_eq!(budget(true, None), PinBudget::Unlimited);
        assert_eq!(budget(true, Some(PinBudget::Auto)), PinBudget::Unlimited);
        let named = Some(PinBudget::Bytes(64 << 20));
        assert_eq!(budget(true, named), PinBudget::Bytes(64 << 20));
    }

    #[test]
    fn choices_survive_another_command_line() {
        let choices = RdmaChoices {
            device: Some("rxe0".to_owned()),
            port: Some(1),
            gid_index: Some(0),
            traffic_class: Some(184),
            service_level: Some(3),
            pkey_index: Some(300),
            ack_timeout: Some(14),
            window: Some(1 << 20),
            poll: Some(PollChoice::Event),
            on_demand_paging: true,
            pin_budget: Some(PinBudget::Bytes(128 << 20)),
        };
        let mut line = vec!["line".to_owned()];
        line.extend(choices.as_arguments());
        assert_eq!(line.len(), 12);
        assert_eq!(Line::try_parse_from(line).unwrap().choices, choices);
        assert!(RdmaChoices::default().as_arguments().is_empty());
        for bad in [
            "--rdma-port=0",
            "--rdma-ack-timeout=0",
            "--rdma-sl=16",
            "--poll=busy",
            "--pin-budget=1MiB",
        ] {
            assert!(Line::try_parse_from(["line", bad]).is_err(), "{bad}");
        }
    }
}
