//! Lines on the local socket, and texts that users paste: secrets and addresses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2ptrain_node::ipc;
use p2ptrain_node::net::PeerAddr;
use p2ptrain_node::swarm_key::SwarmSecret;

fuzz_target!(|data: &[u8]| {
    let _ = ipc::decode_request(data);
    let _ = ipc::decode_response(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = text.parse::<PeerAddr>();
    if let Ok(secret) = text.parse::<SwarmSecret>() {
        assert!(secret.reveal().parse::<SwarmSecret>().is_ok_and(|again| again == secret));
    }
});
