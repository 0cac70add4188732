//! Names to models. (to be written)
pub mod model;
pub use model::{Backend, Details, ModelRef, StoredMessage};
