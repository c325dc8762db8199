//! Chaos: moves of real guests between real processes, with faults, and judges that can't be
//! talked to.
//!
//! | room | what is in it |
//! |---|---|
//! | [`fault`] | what is done to whom, and when |
//! | [`rules`] | how a move may end after each fault, and why that is right |
//! | [`ledger`] | what guests themselves printed about when they ran, and what it proves |
//! | [`arena`] | two sites with a receiver, a guest, a move, and the hands that disturb it |
//! | [`run`] | one run: a move, a fault, the end, the verdict |
//! | [`campaign`] | many runs, side by side, from one seed |
//! | [`tally`] | what came of them: counts, the table, how soon failures were noticed |
//!
//! A run knows the program as a person does: commands, signals, files, `dunlin status`.

pub mod arena;
pub mod campaign;
pub mod fault;
pub mod ledger;
pub mod rules;
pub mod run;
pub mod tally;
