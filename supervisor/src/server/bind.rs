//! The listening socket, and why there is none, in the words that scripts know.

use std::io::ErrorKind;

use tokio::net::{TcpListener, lookup_host};

use super::error::ServerError;
use crate::config::HostUrl;

/// Opens the socket.
///
/// # Errors
/// In Go's words, as scripts know them.
pub(super) async fn bind(host: &HostUrl) -> Result<TcpListener, ServerError> {
    let authority = host.authority();
    let error = |address: &str, error: &std::io::Error| ServerError::Bind {
        address: address.to_owned(),
        reason: bind_reason(error),
        hint: bind_hint(error),
        kind: error.kind(),
    };
    let addresses = lookup_host((host.host.as_str(), host.port)).await.map_err(|reason| error(&authority, &reason))?;
    let mut last = ServerError::Bind {
        address: authority,
        reason: "no such host".to_owned(),
        hint: String::new(),
        kind: ErrorKind::NotFound,
    };
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(reason) => last = error(&address.to_string(), &reason),
        }
    }
    Err(last)
}

fn bind_reason(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "address already in use".to_owned(),
        ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string().to_lowercase(),
    }
}

fn bind_hint(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "\n(Another server, perhaps Ollama itself, listens there. Stop it, or choose another \
                                 address: OLLMLX_HOST=127.0.0.1:11435 ollmlx serve)"
            .to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn row_37_a_taken_port_is_named_in_go_s_words() {
        let first = bind(&HostUrl::parse("127.0.0.1:0").unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(&HostUrl::parse(&address.to_string()).unwrap()).await.unwrap_err().to_string();
        let first_line = error.lines().next().unwrap();
        assert_eq!(first_line, format!("listen tcp {address}: bind: address already in use"));
        assert!(error.contains("OLLMLX_HOST="));
    }
}
