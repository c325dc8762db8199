//! What a process says of itself on its standard streams, a line each. A stream that fails - its
//! reader left, its disk is full - must not end a guest, so nothing here fails or panics. What a
//! command was asked for is printed in [`crate::commands`], where a failure counts.

use std::fmt::Display;
use std::io::{self, Write};

/// Tells what happened, on standard output.
pub(crate) fn tell(line: impl Display) {
    write(io::stdout().lock(), line);
}

/// Tells what is wrong, on standard error, under the program's name.
pub(crate) fn warn(line: impl Display) {
    write(io::stderr().lock(), format_args!("dunlin: {line}"));
}

fn write(mut stream: impl Write, line: impl Display) {
    // There is nobody else to tell, and what the stream was to hear is no reason to stop.
    let _ = writeln!(stream, "{line}");
    let _ = stream.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_is_no_reason_to_stop() {
        match std::fs::OpenOptions::new().write(true).open("/dev/full") {
            Ok(full) => write(full, "a line"),
            Err(error) => tell(format_args!("skipped: /dev/full: {error}")),
        }
    }
}
