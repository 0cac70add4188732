//! What `ollmlx fit` answers where no server runs: the same judgement from the settings, as if nothing was loaded. The
//! stores are only read.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use super::error::ServerError;
use super::settings;
use crate::catalog::Learned;
use crate::config::Config;
use crate::http::fit::{Ask, Question};
use crate::scheduler::Scheduler;
use crate::types::Mono;

/// Judges.
///
/// # Errors
/// The store or the model can't be read, or the question makes no sense.
pub async fn judge(config: &Config, name: &str, ask: &Ask) -> Result<Value, ServerError> {
    let worker_dir = settings::worker_dir(config).map_err(ServerError::system("find the workers"))?;
    let catalog = settings::catalog(config, worker_dir, false)?;
    let model = catalog.resolve(name).await.map_err(|error| ServerError::Model(error.to_string()))?;
    let learned = Learned::read(&settings::learned_path(config));
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let question = Question::new(&model, &settings::http_config(config, nowhere), &learned, ask.clone());
    let question = question.map_err(|rejection| ServerError::Model(rejection.message))?;
    // One that has nothing loaded.
    let scheduler = Scheduler::new(settings::scheduler_config(config), 0);
    let mut judged = question.told(&scheduler.snapshot(Mono(0)), &scheduler.outlook(&question.wished()));
    judged["offline"] = json!(true);
    Ok(judged)
}
