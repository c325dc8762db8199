//! dunlin.
fn main() {}
