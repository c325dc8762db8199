//! What the built-in guest does.

/// What the built-in guest does, for the whole guest: vCPUs share it out evenly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// In which order the hot set's pages are rewritten.
    pub pattern: Pattern,
    /// How much memory is rewritten, in bytes.
    pub hot_bytes: u64,
    /// How fast, in bytes a second, all vCPUs together; `None`: as fast as they can.
    pub rate: Option<u64>,
    /// How many in a hundred of the other pages are zero.
    pub zero_percent: u8,
}

/// In which order a hot set's pages are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One after the other, over and over.
    Sequential,
    /// At random.
    Random,
}
