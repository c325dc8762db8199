//! What is compared: one row each.

/// One row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Its name there.
    pub(crate) name: String,
    /// What is run.
    pub(crate) what: What,
}

/// What is run for a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// `ib_write_bw`: RDMA writes and nothing else.
    WriteBandwidth {
        /// Bytes of a message.
        message_bytes: u64,
        /// Queue pairs.
        pairs: u32,
    },
    /// A guest moved by Dunlin.
    Dunlin {
        /// `rdma` or `tcp`.
        scheme: &'static str,
        /// Lanes.
        lanes: u16,
        /// Every other page is untouched, so that each run is one page.
        scattered: bool,
        /// What may be under way on a lane, as `--rdma-window` takes it; `None`: as the device bears.
        window: Option<&'static str>,
    },
    /// A guest moved by QEMU.
    Qemu(QemuWay),
    /// `iperf3`: TCP and nothing else.
    Iperf {
        /// Connections.
        streams: u32,
    },
}

/// How QEMU moves a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QemuWay {
    /// `rdma:`, memory registered as it goes, or all of it at the start.
    Rdma {
        /// `rdma-pin-all`.
        pin_all: bool,
    },
    /// TCP over several channels.
    Multifd {
        /// How many.
        channels: u8,
    },
}

/// The row that others are compared with.
pub(crate) const WRITES_1_MIB: &str = "ib_write_bw 1 MiB";
/// The same with small messages.
pub(crate) const WRITES_4_KIB: &str = "ib_write_bw 4 KiB";
/// The row whose work is counted as on a NIC.
pub(crate) const NIC_WINDOW: &str = "dunlin rdma, 1 lane, 32 MiB window";
/// The row of QEMU that is to be beaten.
pub(crate) const PIN_ALL: &str = "qemu rdma, pin-all";

impl Row {
    /// Whether it is one of Dunlin's moves over RDMA as its user has them.
    pub(crate) fn is_dunlin_rdma(&self, is_scattered: bool) -> bool {
        matches!(self.what, What::Dunlin { scheme: "rdma", window: None, scattered, .. } if scattered == is_scattered)
    }
}

/// All rows, in the table's order, which is also that of a pass.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, what| {
        rows.push(Row {
            name: name.to_owned(),
            what,
        });
    };
    let writes = |message_bytes, pairs| What::WriteBandwidth {
        message_bytes,
        pairs,
    };
    add(WRITES_1_MIB, writes(1 << 20, 1));
    add("ib_write_bw 1 MiB, 4 QPs", writes(1 << 20, 4));
    add(WRITES_4_KIB, writes(4 << 10, 1));
    add("ib_write_bw 4 KiB, 4 QPs", writes(4 << 10, 4));
    let dunlin = |scheme, lanes, scattered, window| What::Dunlin {
        scheme,
        lanes,
        scattered,
        window,
    };
    add("dunlin rdma, 1 lane", dunlin("rdma", 1, false, None));
    add("dunlin rdma, 2 lanes", dunlin("rdma", 2, false, None));
    add("dunlin rdma, 4 lanes", dunlin("rdma", 4, false, None));
    add(NIC_WINDOW, dunlin("rdma", 1, false, Some("32MiB")));
    for lanes in [1, 4] {
        let plural = if lanes == 1 { "" } else { "s" };
        let name = format!("dunlin rdma, single pages, {lanes} lane{plural}");
        add(&name, dunlin("rdma", lanes, true, None));
    }
    add("qemu rdma", What::Qemu(QemuWay::Rdma { pin_all: false }));
    add(PIN_ALL, What::Qemu(QemuWay::Rdma { pin_all: true }));
    for (name, streams) in [("iperf3, 1 stream", 1), ("iperf3, 4 streams", 4)] {
        add(name, What::Iperf { streams });
    }
    add("dunlin tcp, 1 lane", dunlin("tcp", 1, false, None));
    add("dunlin tcp, 2 lanes", dunlin("tcp", 2, false, None));
    add("dunlin tcp, 4 lanes", dunlin("tcp", 4, false, None));
    for (name, channels) in [
        ("qemu multifd, 2 channels", 2),
        ("qemu multifd, 4 channels", 4),
    ] {
        add(name, What::Qemu(QemuWay::Multifd { channels }));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_others_name_are_there_once() {
        let rows = all();
        for name in [WRITES_1_MIB, WRITES_4_KIB, NIC_WINDOW, PIN_ALL] {
            assert_eq!(rows.iter().filter(|row| row.name == name).count(), 1);
        }
        assert_eq!(
            rows.iter().filter(|row| row.is_dunlin_rdma(false)).count(),
            3
        );
        assert_eq!(
            rows.iter().filter(|row| row.is_dunlin_rdma(true)).count(),
            2
        );
    }
}
