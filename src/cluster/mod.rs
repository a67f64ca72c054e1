//! What the cluster around us needs in order to come to us.

pub mod hosts;
