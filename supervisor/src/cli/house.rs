//! Puts the server's parts together: catalogue, driver, door. The one place that knows them all.

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::error::CliError;
use super::serve::Leaving;
use crate::config::Config;

/// Serves until somebody asks to leave and the last worker is reaped.
///
/// # Errors
/// A part that could not start.
pub(super) async fn run(
    config: Config,
    listener: TcpListener,
    mut leaving: watch::Receiver<Leaving>,
) -> Result<(), CliError> {
    // INTEGRATOR: Catalog::…(CatalogConfig from config), driver::start(DriverConfig from config), http::serve(listener,
    // AppState, HttpConfig from config, leaving). Until then the door opens to nothing.
    drop((config, listener));
    drop(leaving.wait_for(|leaving| *leaving != Leaving::No).await);
    Ok(())
}
