//! What `ollmlx fit` answers where no server runs: the same judgement from the settings, as if nothing was loaded. The
//! stores are only read.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use super::error::ServerError;
use super::settings;
use crate::catalog::Learned;
use crate::config::{Config, Keys};
use crate::driver;
use crate::http::fit::Question;
use crate::types::LoadWish;

/// Judges.
///
/// # Errors
/// The store or the model can't be read, or the question makes no sense.
pub async fn judge(config: &Config, name: &str, ask: &LoadWish) -> Result<Value, ServerError> {
    let worker_dir = settings::worker_dir(config).map_err(ServerError::system("find the workers"))?;
    let catalog = settings::catalog(config, worker_dir, settings::launcher(config), false)?;
    let model = catalog.resolve(name).await.map_err(|error| ServerError::Model(error.to_string()))?;
    let learned = Learned::read(&settings::learned_path(config));
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let question =
        Question::new(&model, &settings::http_config(config, Keys::default(), nowhere), &learned, ask.clone());
    let question = question.map_err(|rejection| ServerError::Model(rejection.message))?;
    let (snapshot, outlook) =
        driver::outlook_with_nothing_loaded(settings::scheduler_config(config), &question.wished());
    let mut judged = question.told(&snapshot, &outlook);
    judged["offline"] = json!(true);
    Ok(judged)
}
