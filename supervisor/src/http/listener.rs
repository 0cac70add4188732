//! Accepts connections and serves each in a task of its own, unless its address has too many already (see `crowd`).

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::{
    CLIENT_SOCKET_BYTES, CONNECTIONS_MAX, HEADER_BYTES_MAX, HEADER_READ_TIMEOUT_MS, UPGRADE_LINGER_MS,
};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::crowd::Crowd;
use super::dispatch;
use super::respond::{HttpReply, text};
use super::state::AppState;

/// After a failed accept (out of descriptors, mostly) others get time to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether new connections are welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// They are.
    Open,
    /// A successor accepts them; those that are open may bring one more request.
    HandedOver,
    /// They are not.
    Closed,
}

/// Serves until the door is not open any more, then lets running requests end; the caller bounds that by dropping this.
pub async fn serve(listener: TcpListener, state: Arc<AppState>, leaving: watch::Receiver<Door>) {
    serve_crowd(listener, state, leaving, Crowd::default()).await;
}

/// The same with another rule for the connections of one address.
pub async fn serve_crowd(
    listener: TcpListener,
    state: Arc<AppState>,
    mut leaving: watch::Receiver<Door>,
    mut crowd: Crowd,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = told(&mut leaving, Door::Open) => break,
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, address, permit)) => {
                let Some(place) = crowd.enter(address.ip()) else {
                    turn_away(&mut crowd, &state, address.ip());
                    continue;
                };
                let (state, leaving) = (Arc::clone(&state), leaving.clone());
                connections.spawn(async move {
                    connection((stream, address.ip()), state, leaving).await;
                    drop((permit, place));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One that is too much is closed by being dropped.
fn turn_away(crowd: &mut Crowd, state: &AppState, address: IpAddr) {
    state.metrics.turned_away();
    if let Some(count) = crowd.refuse(state.handle.now()) {
        tracing::warn!(%address, count, "connections were closed, since their address has too many");
    }
}

/// Waits until the server leaves; a sender that is gone means the same.
async fn told(leaving: &mut watch::Receiver<Door>, than: Door) {
    drop(leaving.wait_for(|leaving| *leaving > than).await);
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    // Small chunks must leave at once: each is a token that someone waits for. A client that has left already makes this
    // fail, which is no reason to keep the next one waiting.
    let no_delay = stream.set_nodelay(true);
    let tuned = no_delay.and_then(|()| Ok(setsockopt(&stream, sockopt::SndBuf, &CLIENT_SOCKET_BYTES)?));
    if let Err(error) = tuned {
        tracing::debug!(%error, "a connection kept the system's settings");
    }
    Ok((stream, address, permit))
}

async fn connection((stream, address): (TcpStream, IpAddr), state: Arc<AppState>, mut leaving: watch::Receiver<Door>) {
    let door = leaving.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (state, door) = (Arc::clone(&state), door.clone());
        async move {
            // On the heap, so that a connection without a request does not hold the room for one.
            let mut reply = Box::pin(answer(state, request, address)).await;
            if *door.borrow() != Door::Open {
                reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(reply)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEADER_READ_TIMEOUT_MS))
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
        }
        () = told(&mut leaving, Door::Open) => {
            // One that was accepted just now, or is kept alive, may have a request under way: it must not be refused.
            let linger = tokio::time::sleep(Duration::from_millis(UPGRADE_LINGER_MS));
            tokio::select! {
                _ended = connection.as_mut() => return,
                () = told(&mut leaving, Door::HandedOver) => {}
                () = linger => {}
            }
            connection.as_mut().graceful_shutdown();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
        }
    }
}

/// A panic in a handler is the end of that request only.
async fn answer(state: Arc<AppState>, request: Request<Incoming>, address: IpAddr) -> HttpReply {
    let handled = futures_catch(dispatch::serve(state, request, address)).await;
    handled.unwrap_or_else(|| text(500, "internal server error"))
}

/// Polls a future and turns a panic into `None`.
async fn futures_catch<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(move |context| {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        match polled {
            Ok(std::task::Poll::Ready(output)) => std::task::Poll::Ready(Some(output)),
            Ok(std::task::Poll::Pending) => std::task::Poll::Pending,
            Err(_) => {
                tracing::error!("a request handler panicked");
                std::task::Poll::Ready(None)
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn row_34_a_panic_in_a_handler_is_the_end_of_that_request_only() {
        let broken = async {
            tokio::task::yield_now().await;
            assert!(std::hint::black_box(false), "as asked");
        };
        assert_eq!(futures_catch(broken).await, None);
        assert_eq!(futures_catch(async { 7 }).await, Some(7));
    }
}
