//! What the cluster around us needs in order to come to us, and what it runs.

pub mod admission;
pub mod audit;
pub mod egress;
pub mod export;
pub mod hosts;
pub mod inputs;
pub mod judge;
pub mod mention;
pub mod node;
pub mod rehearsal;
pub mod suggest;
pub mod workload;
