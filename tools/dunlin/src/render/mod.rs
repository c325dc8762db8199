//! How things look on a terminal.
//!
//! | room | what is in it |
//! |---|---|
//! | [`amounts`] | bytes, rates, durations, counts |
//! | [`palette`] | colour, where it is wanted |
//! | [`progress`] | the live line of a move |
//! | [`status_line`] | a line that is drawn over itself |
//! | [`receipt`] | what a move came to |
//! | [`blackout`] | the pause, part by part |
//! | [`guests`] | what `dunlin status` shows |
//! | [`text`] | text that fits a line and does not steer the terminal |

pub(crate) mod amounts;
pub(crate) mod blackout;
#[cfg(test)]
pub(crate) mod example;
pub(crate) mod guests;
pub(crate) mod palette;
pub(crate) mod progress;
pub(crate) mod receipt;
pub(crate) mod status_line;
pub(crate) mod text;
