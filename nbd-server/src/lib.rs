//! The daemon `repld`: serves replicated volumes over NBD.

pub mod nbd;
