//! What `ollmlx fit` answers where no server runs: the same judgement from the settings, as if nothing was loaded. The
//! stores are only read.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use super::error::ServerError;
use super::settings;
use crate::catalog::Learned;
use crate::config::Config;
use crate::http::fit::{self, Ask};
use crate::types::{KeepAlive, Snapshot};

/// Judges.
///
/// # Errors
/// The store or the model can't be read, or the question makes no sense.
pub async fn judge(config: &Config, name: &str, ask: &Ask) -> Result<Value, ServerError> {
    let worker_dir = settings::worker_dir(config).map_err(ServerError::system("find the workers"))?;
    let catalog = settings::catalog(config, worker_dir, false)?;
    let model = catalog.resolve(name).await.map_err(|error| ServerError::Model(error.to_string()))?;
    let scheduler = settings::scheduler_config(config);
    let snapshot = Snapshot {
        limit_bytes: scheduler.memory_limit,
        shrink: scheduler.shrink,
        workers_max: scheduler.workers_max,
        pins_hold: scheduler.default_keep_alive != KeepAlive::Forever,
        ..Snapshot::default()
    };
    let learned = Learned::read(&settings::learned_path(config));
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let judged = fit::judge(&model, &settings::http_config(config, nowhere), &learned, &snapshot, ask);
    let mut judged = judged.map_err(|rejection| ServerError::Model(rejection.message))?;
    judged["offline"] = json!(true);
    Ok(judged)
}
