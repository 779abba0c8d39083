//! Ports for servers that cannot choose their own.

use std::net::TcpListener;

/// A port of the loopback interface that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback interface has a free port");
    listener
        .local_addr()
        .expect("a bound listener has an address")
        .port()
}
