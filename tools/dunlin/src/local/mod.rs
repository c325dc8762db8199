//! Everything local: the runtime directory and the control socket of each guest in it.
//!
//! | room | what is in it |
//! |---|---|
//! | [`runtime_dir`] | the directory, and whose a name is |
//! | [`state_dir`] | where the records of handovers are |
//! | `line` | bounded lines of JSON |
//! | [`protocol`] | what is said |
//! | [`server`] | the guest's end |
//! | [`client`] | a command's end |
//! | [`roll`] | all guests, each asked how it is |

pub(crate) mod client;
pub(crate) mod line;
pub(crate) mod protocol;
pub(crate) mod roll;
pub(crate) mod runtime_dir;
pub(crate) mod server;
pub(crate) mod state_dir;
