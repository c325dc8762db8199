//! The serial port, and where its output goes.
//!
//! Section `serial`, version 1: a 16550's registers, one byte each.
//!
//! | field | what |
//! |---|---|
//! | 1, 2 | baud rate divisor, low and high |
//! | 3 | interrupt enable |
//! | 4 | interrupt identification |
//! | 5 | line control |
//! | 6 | line status |
//! | 7 | modem control |
//! | 8 | modem status |
//! | 9 | scratch |
//! | 10 | bytes received and not yet read, at most 64 |
//!
//! Output goes into a queue (`serial_queue`), so the transmitter always has room. Whether it is
//! empty, which the line status tells too, is the truth: what was printed has been written out.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dunlin_engine::state::{Section, StateError};
use dunlin_transports::deadline::Deadline;
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use super::program::{LINE_STATUS, SERIAL_PORT, TRANSMITTER_EMPTY};
use crate::serial_queue::{SerialInput, SerialQueue};

/// How many I/O ports a serial port has.
const PORTS: u16 = 8;

const SECTION: &str = "serial";
const VERSION: u16 = 1;
const FIELD_RECEIVED: u16 = 10;

/// What is behind the I/O ports. Called by several vCPUs at once.
pub(super) trait Ports: Send + Sync {
    /// The guest reads from a port.
    fn read(&self, port: u16, data: &mut [u8]);
    /// The guest writes to a port.
    fn write(&self, port: u16, data: &[u8]);
}

/// The guest has no interrupt handlers, so the port's interrupts go nowhere.
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The serial port; at all other ports is what a test puts there, or nothing.
pub(super) struct SerialPort {
    device: Mutex<Serial<NoInterrupt, NoEvents, SerialInput>>,
    output: SerialInput,
    queue: SerialQueue,
    others: Option<Arc<dyn Ports>>,
}

impl SerialPort {
    pub(super) fn new(
        sink: Box<dyn Write + Send>,
        others: Option<Arc<dyn Ports>>,
    ) -> io::Result<Self> {
        let queue = SerialQueue::start(sink)?;
        let output = queue.input();
        Ok(Self {
            device: Mutex::new(Serial::new(NoInterrupt, output.clone())),
            output,
            queue,
            others,
        })
    }

    /// The port's state. Output that waits to be written is not part of it: it belongs to the place
    /// where the guest printed it, and goes out there without waiting for the rest of its line.
    pub(super) fn save(&self) -> Section {
        self.queue.flush_soon();
        let state = self.device().state();
        let mut section = Section::new(SECTION, VERSION);
        for (field, register) in (1..).zip(registers(&state)) {
            section.put(field, [register]);
        }
        section.put(FIELD_RECEIVED, state.in_buffer);
        section
    }

    /// Sets the port's state, taken out of a guest's.
    pub(super) fn load(
        &self,
        state: &mut dunlin_engine::state::DeviceState,
    ) -> Result<(), StateError> {
        let mut section = state.require(SECTION, VERSION)?;
        let mut values = [0; 9];
        for (field, value) in (1..).zip(&mut values) {
            let bytes = section.require(field)?;
            let [byte] = bytes.as_slice() else {
                return Err(section.bad(field, format!("{} bytes instead of 1", bytes.len())));
            };
            *value = *byte;
        }
        let in_buffer = section.require(FIELD_RECEIVED)?;
        let received = in_buffer.len();
        let [low, high, ier, iir, lcr, lsr, mcr, msr, scratch] = values;
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: ier,
            interrupt_identification: iir,
            line_control: lcr,
            line_status: lsr,
            modem_control: mcr,
            modem_status: msr,
            scratch,
            in_buffer,
        };
        let device = Serial::from_state(&state, NoInterrupt, NoEvents, self.output.clone())
            .map_err(|_| section.bad(FIELD_RECEIVED, format!("{received} bytes, at most 64")))?;
        section.finish()?;
        *self.device() = device;
        Ok(())
    }

    /// Writes out what waits and ends the thread, if that is done by the deadline.
    pub(super) fn close(&self, deadline: Deadline) {
        self.queue.close(deadline);
    }

    fn device(&self) -> MutexGuard<'_, Serial<NoInterrupt, NoEvents, SerialInput>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn registers(state: &SerialState) -> [u8; 9] {
    [
        state.baud_divisor_low,
        state.baud_divisor_high,
        state.interrupt_enable,
        state.interrupt_identification,
        state.line_control,
        state.line_status,
        state.modem_control,
        state.modem_status,
        state.scratch,
    ]
}

impl Ports for SerialPort {
    fn read(&self, port: u16, data: &mut [u8]) {
        match (port.checked_sub(SERIAL_PORT), &self.others) {
            (Some(register @ 0..PORTS), _) => {
                let mut device = self.device();
                data.iter_mut()
                    .for_each(|byte| *byte = device.read(register as u8));
                if port == LINE_STATUS && !self.output.is_written_out() {
                    data.iter_mut().for_each(|byte| *byte &= !TRANSMITTER_EMPTY);
                }
            }
            (_, Some(others)) => others.read(port, data),
            // An empty bus.
            (_, None) => data.fill(0xff),
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        match (port.checked_sub(SERIAL_PORT), &self.others) {
            (Some(register @ 0..PORTS), _) => {
                let mut device = self.device();
                for byte in data {
                    // Neither the queue nor the interrupt ever fails.
                    let _ = device.write(register as u8, *byte);
                }
            }
            (_, Some(others)) => others.write(port, data),
            (_, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use dunlin_engine::state::DeviceState;

    use super::*;

    #[test]
    fn state_comes_back_and_what_is_unknown_is_refused() {
        let port = SerialPort::new(Box::new(io::sink()), None).unwrap();
        port.write(SERIAL_PORT + 7, &[0x5a]);
        let section = port.save();
        let mut state = DeviceState::new();
        state.push(section.clone());
        let other = SerialPort::new(Box::new(io::sink()), None).unwrap();
        other.load(&mut state).unwrap();
        assert_eq!(other.save(), section);

        let mut unknown = section;
        unknown.put(11, [0]);
        let mut state = DeviceState::new();
        state.push(unknown);
        assert_eq!(
            other.load(&mut state).unwrap_err().to_string(),
            "section 'serial' has field 11, which is not known to this build"
        );
    }

    /// The bytes of version 1 stay readable for ever.
    #[test]
    fn golden_bytes() {
        let port = SerialPort::new(Box::new(io::sink()), None).unwrap();
        let mut state = DeviceState::new();
        state.push(port.save());
        assert_eq!(
            state.encode().unwrap(),
            b"\x81\x83\x66serial\x01\xaa\x01\x41\x0c\x02\x41\0\x03\x41\0\x04\x41\x01\x05\x41\x03\
              \x06\x41\x60\x07\x41\x08\x08\x41\xb0\x09\x41\0\x0a\x40"
        );
    }
}
