//! A file descriptor in reserve, for when there is no other: with it a connection that cannot be served is taken and
//! closed, so that its client hears at once rather than wait for a server that has nothing to answer it with.

use std::{fs::File, time::Duration};

use tokio::net::TcpListener;

/// How long a connection that was seen to be there may take to be taken.
const AT_ONCE: Duration = Duration::from_millis(50);

/// The reserve. Something else in the process may get the descriptor while it is let go of; then the next is turned away
/// once there is one again.
pub(super) struct Spare(Option<File>);

impl Spare {
    /// Sets one aside, where there is one.
    pub(super) fn keep() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Takes the first connection that waits, and closes it. Tells whether that could be done.
    pub(super) async fn turn_away(&mut self, listener: &TcpListener) -> bool {
        self.0 = None;
        let taken = tokio::time::timeout(AT_ONCE, listener.accept()).await;
        let done = matches!(taken, Ok(Ok(_)));
        drop(taken);
        *self = Self::keep();
        done
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_client_is_turned_away_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut spare = Spare::keep();
        assert!(spare.0.is_some());
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(spare.turn_away(&listener).await);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(spare.0.is_some(), "there is a reserve again");
        assert!(!spare.turn_away(&listener).await, "nobody waits");
    }
}
