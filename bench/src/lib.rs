//! What the benchmarks measure with, and what they are given to do.
//!
//! | room | what is in it |
//! |---|---|
//! | [`inputs`] | guests' layouts, bitmaps with a known pattern, contents of pages |
//! | [`program`] | processes: started, waited for within bounds, ended |
//! | [`ends`] | the two ends of a link: addresses, and the network namespaces that they are in |
//! | [`site`] | Dunlin as on a host of its own: a guest, a receiver, a move |
//! | [`shuttle`] | a guest that moves there and back between two of these |
//! | [`moved`] | what the report of a move says |
//! | [`qemu`], [`qmp`] | QEMU: two of them, and speaking with them |
//! | [`boot_sector`] | a guest for QEMU that rewrites memory |
//! | [`iperf`] | `iperf3` |
//! | [`random_memory`] | a file in memory with random bytes |
//! | [`usage`] | whose processor time and whose memory a run was |
//! | [`host`] | the machine's own counters |
//! | [`spread`] | medians of several runs, and how far these are apart |
//! | [`target`] | what was to be reached, and whether it was |
//! | [`table`] | figures for people |
//!
//! The programs in `bin/` compare and print; the micro-benchmarks are in `benches/`.

pub mod boot_sector;
pub mod ends;
pub mod host;
pub mod inputs;
pub mod iperf;
pub mod moved;
pub mod program;
pub mod qemu;
pub mod qmp;
pub mod random_memory;
pub mod shuttle;
pub mod site;
pub mod spread;
pub mod table;
pub mod target;
pub mod usage;

pub use inputs::{Contents, Pattern, SplitMix, fresh_memory, one_region};
