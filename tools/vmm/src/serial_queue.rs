//! Between a guest that prints and whoever reads it: a bounded queue, which a thread of its own
//! empties. A vCPU never waits for it. When the queue is full, bytes are dropped, and a line says
//! how many.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dunlin_transports::deadline::Deadline;

/// How many bytes may wait to be written: minutes of heartbeats, and little enough to be nothing.
const QUEUE_BYTES_MAX: usize = 64 << 10;

/// How long the rest of a line is waited for before what there is of it is written: no person sees
/// it, and it is longer than a guest takes to print a line.
const LINE_WAIT_MAX: Duration = Duration::from_millis(10);

/// The queue, with its thread.
pub(crate) struct SerialQueue {
    input: SerialInput,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl SerialQueue {
    /// A queue whose bytes go to `sink`. A sink that fails is written to no more.
    ///
    /// # Errors
    ///
    /// When its thread can't be made.
    pub(crate) fn start(sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let input = SerialInput(Arc::new(Queue::default()));
        let queue = Arc::clone(&input.0);
        let writer = std::thread::Builder::new()
            .name("serial".to_owned())
            .spawn(move || queue.write_out(sink))?;
        Ok(Self {
            input,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// The end that the guest writes to.
    pub(crate) fn input(&self) -> SerialInput {
        self.input.clone()
    }

    /// Writes out what waits soon, be it the end of a line or not. Does not wait for it.
    pub(crate) fn flush_soon(&self) {
        self.input.0.lock().line_waits = true;
        self.input.0.changed.notify_one();
    }

    /// Writes out what waits and ends the thread, if that is done by the deadline.
    pub(crate) fn close(&self, deadline: Deadline) {
        self.input.0.end();
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(writer) = writer else {
            return;
        };
        while !writer.is_finished() && !deadline.passed() {
            std::thread::sleep(Duration::from_micros(100));
        }
        if writer.is_finished() {
            let _ = writer.join();
        }
    }
}

/// The guest's end of the queue.
#[derive(Clone)]
pub(crate) struct SerialInput(Arc<Queue>);

impl SerialInput {
    /// Prints what fits into the queue. Neither waits nor fails.
    pub(crate) fn print(&self, bytes: &[u8]) {
        let mut waiting = self.0.lock();
        let room = QUEUE_BYTES_MAX.saturating_sub(waiting.bytes.len());
        let taken = bytes.len().min(room);
        let begins = waiting.bytes.is_empty();
        waiting.bytes.extend(bytes.iter().take(taken));
        waiting.dropped += (bytes.len() - taken) as u64;
        let ends_line = bytes.contains(&b'\n');
        waiting.line_waits |= ends_line;
        drop(waiting);
        // A guest may print byte by byte: waking the writer for each costs far more than the byte.
        if begins || ends_line {
            self.0.changed.notify_one();
        }
    }

    /// Whether all that was printed has been handed to the sink, so that it outlives this process.
    pub(crate) fn is_written_out(&self) -> bool {
        let waiting = self.0.lock();
        waiting.bytes.is_empty() && !waiting.being_written
    }
}

impl Write for SerialInput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.print(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// Whether the end of a line is among them.
    line_waits: bool,
    /// Whether bytes were taken out that the sink may not have yet.
    being_written: bool,
    dropped: u64,
    ended: bool,
}

impl Queue {
    /// Writes to `sink` what comes, until the end.
    fn write_out(&self, mut sink: Box<dyn Write + Send>) {
        let mut broken = false;
        loop {
            let (bytes, dropped) = {
                let mut waiting = self.lock();
                waiting.being_written = false;
                while waiting.bytes.is_empty() && !waiting.ended {
                    waiting = self
                        .changed
                        .wait(waiting)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                if waiting.bytes.is_empty() {
                    return;
                }
                let end = Deadline::after(LINE_WAIT_MAX);
                while !waiting.line_waits && !waiting.ended && !end.passed() {
                    (waiting, _) = self
                        .changed
                        .wait_timeout(waiting, end.remaining())
                        .unwrap_or_else(PoisonError::into_inner);
                }
                waiting.line_waits = false;
                waiting.being_written = true;
                let bytes: Vec<u8> = waiting.bytes.drain(..).collect();
                (bytes, std::mem::take(&mut waiting.dropped))
            };
            if broken {
                continue;
            }
            let mut write = || -> io::Result<()> {
                sink.write_all(&bytes)?;
                if dropped > 0 {
                    writeln!(sink, "\n[{dropped} bytes of output were dropped]")?;
                }
                sink.flush()
            };
            broken = write().is_err();
        }
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes nothing until it is released.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_stuck_keeps_no_vcpu_waiting() {
        let (release, stuck) = mpsc::channel();
        let queue = SerialQueue::start(Box::new(Stuck(stuck))).unwrap();
        let input = queue.input();
        for _ in 0..3 * QUEUE_BYTES_MAX {
            input.print(b"x");
        }
        assert!(input.0.lock().dropped > 0);
        drop(release);
        queue.close(Deadline::after(Duration::from_secs(10)));
    }

    #[test]
    fn what_the_sink_does_not_have_yet_is_not_written_out() {
        let (release, stuck) = mpsc::channel();
        let queue = SerialQueue::start(Box::new(Stuck(stuck))).unwrap();
        let input = queue.input();
        assert!(input.is_written_out());
        input.print(b"a line\n");
        // Be it in the queue or on its way.
        for _ in 0..50 {
            assert!(!input.is_written_out());
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(release);
        let end = Deadline::after(Duration::from_secs(10));
        while !input.is_written_out() {
            assert!(!end.passed(), "it never got there");
            std::thread::yield_now();
        }
        queue.close(end);
    }
}
