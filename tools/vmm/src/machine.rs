//! Either kind of guest, behind the engine's traits.
