//! Names to models. (to be written)
pub mod model;
pub mod modelfile;
pub use model::{Backend, Details, ModelRef, StoredMessage};
