//! What fails from outside: connections, processes, hosts. How often is not bounded: what is cut or
//! dead stays so, and the supervisor may be killed and started again without end.

use dunlin_engine::records::Role;
use dunlin_engine::session::destination::Action as DestinationAction;
use dunlin_engine::session::source::SourceSession;

use crate::step::{DiskStep, Fault, Step};
use crate::world::{Life, World};

impl World {
    pub(crate) fn fault_steps(&self, steps: &mut Vec<Step>) {
        let mut push = |fault| steps.push(Step::Fault(fault));
        if !self.to_destination.is_broken() {
            push(Fault::CutToDestination);
        }
        if !self.to_source.is_broken() {
            push(Fault::CutToSource);
        }
        if self.source.life == Life::InSession {
            push(Fault::KillSource);
            let record = &self.source.record;
            for kept in record.durable..=record.entries.len() {
                push(Fault::CrashSourceHost { kept });
            }
        }
        let is_entering = self.destination.actions.first() == Some(&DestinationAction::Run);
        let entering: &[bool] = if is_entering {
            &[false, true]
        } else {
            &[false]
        };
        if self.destination.life.is_alive() {
            for &is_entering in entering {
                push(Fault::KillDestination { is_entering });
            }
        }
        let record = &self.destination.record;
        if record.is_there && record.is_same_boot {
            for kept in record.durable..=record.entries.len() {
                for &is_entering in entering {
                    push(Fault::CrashDestinationHost { kept, is_entering });
                }
            }
        }
        if record.is_there {
            push(Fault::LoseRecord);
        }
        if self.is_supervisor_up {
            push(Fault::KillSupervisor);
        }
        if self.is_in_doubt() && !self.is_fenced {
            push(Fault::Fence);
        }
    }

    /// Disks that hang and go on.
    pub(crate) fn disk_steps(&self, steps: &mut Vec<Step>) {
        let records = [
            (Role::Source, &self.source.record),
            (Role::Destination, &self.destination.record),
        ];
        for (side, record) in records {
            if !record.pending.is_empty() {
                let step = |is_written| Step::Disk(DiskStep { side, is_written });
                steps.extend([true, false].map(step));
            }
        }
    }

    pub(crate) fn disk_goes_on(&mut self, step: DiskStep) {
        let record = match step.side {
            Role::Source => &mut self.source.record,
            Role::Destination => &mut self.destination.record,
        };
        record.go_on(step.is_written);
    }

    pub(crate) fn fails(&mut self, fault: Fault) {
        match fault {
            Fault::CutToDestination => self.to_destination.cut(),
            Fault::CutToSource => self.to_source.cut(),
            Fault::KillSource => {
                self.source_dies();
                self.to_destination.is_closed = true;
            }
            Fault::CrashSourceHost { kept } => {
                self.source_dies();
                // Nobody says that it ended: there is silence.
                self.to_destination.is_cut = true;
                self.source.record.lose_behind(kept);
            }
            Fault::KillDestination { is_entering } => self.destination_dies(is_entering),
            Fault::CrashDestinationHost { kept, is_entering } => {
                self.destination_host_dies(is_entering);
                self.destination.record.lose_behind(kept);
            }
            Fault::LoseRecord => {
                self.destination.record.remove();
                self.is_record_lost = true;
            }
            Fault::KillSupervisor => {
                self.supervisor_dies();
                self.forget_arrival();
            }
            Fault::Fence => {
                self.destination_host_dies(false);
                self.is_fenced = true;
            }
        }
    }

    fn source_dies(&mut self) {
        let source = &mut self.source;
        source.life = Life::Crashed;
        source.record.lose_writer();
        source.runs = false;
        source.has_memory = false;
        source.in_round = false;
        source.actions.clear();
        source.session = SourceSession::new();
        self.to_source.deafen();
    }

    fn destination_host_dies(&mut self, is_entering: bool) {
        let silence = !self.to_source.is_closed;
        if self.destination.life.is_alive() {
            self.destination_dies(is_entering);
            self.to_source.is_closed = !silence;
            self.to_source.is_cut |= silence;
        }
        self.supervisor_dies();
        self.forget_arrival();
    }

    /// A HELLO that the supervisor has not taken yet dies with it.
    fn forget_arrival(&mut self) {
        if self.destination.life == Life::None {
            self.destination.life = Life::Exited;
            self.hang_up_on_source();
        }
    }
}
