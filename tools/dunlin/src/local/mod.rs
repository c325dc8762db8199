//! Everything local: the runtime directory and the control socket of each guest in it.
//!
//! | room | what is in it |
//! |---|---|
//! | [`runtime_dir`] | the directory, and whose a name is |
//! | `line` | bounded lines of JSON |
//! | [`protocol`] | what is said |
//! | [`server`] | the guest's end |
//! | [`client`] | a command's end |

pub(crate) mod client;
pub(crate) mod line;
pub(crate) mod protocol;
pub(crate) mod runtime_dir;
pub(crate) mod server;
