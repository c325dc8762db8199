//! What scenarios are made of: the program, sites with guests and receivers, and raw connections.
//!
//! A scenario runs the built program as a person would, in processes of its own, and looks at what
//! the program prints. It knows no type of the program's.
//!
//! | room | what is in it |
//! |---|---|
//! | [`program`] | running `dunlin`, with a time limit on everything |
//! | [`site`] | a host as far as Dunlin can tell: a runtime directory, guests, a receiver |
//! | [`host`] | what this machine has: KVM, huge pages, namespaces |
//! | [`rdma`] | what RDMA holds, and the wire below it |
//! | [`chaos`] | moves with faults, by the hundred |
//! | [`measured`] | what a report says that both ends measured |
//! | [`schema`] | what the program writes, against its schemas |
//! | [`browser`] | a browser that looks at pages |
//! | [`wire`] | raw connections, to say what no program of ours would |

pub mod browser;
pub mod chaos;
pub mod host;
pub mod measured;
pub mod program;
pub mod rdma;
pub mod schema;
pub mod site;
pub mod wire;
