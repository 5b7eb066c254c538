//! What a peer tells the swarm about itself, signed.

use std::fmt;
use std::net::SocketAddr;

use bincode::{Decode, Encode};
use ed25519_dalek::{Signature, Signer, SigningKey};
use thiserror::Error;

use crate::id::{Incarnation, JobId, PeerId, Step};
use crate::limits;
use crate::wire::{self, Kind, WireError};

/// Signed bytes start with this, so that a signature of something else is never one of an advert.
const SIGNATURE_DOMAIN: &[u8] = b"p2ptrain advert v1\0";

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum DeviceKind {
    /// The processor's cores together.
    Cpu,
    /// One NVIDIA GPU.
    Cuda,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// One device of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceAdvert {
    /// What it is.
    pub kind: DeviceKind,
    /// The maker's name of it.
    pub name: String,
    /// Memory that training may use, in bytes.
    pub memory_bytes: u64,
    /// Measured floating-point operations a second.
    pub flops_per_s: u64,
    /// Share of it that others use, in thousandths.
    pub load_permille: u16,
}

/// A measured link from the advertising peer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LinkAdvert {
    /// The peer at its other end.
    pub to: PeerId,
    /// Round-trip time in µs.
    pub rtt_us: u32,
    /// Measured bandwidth in bits a second.
    pub bits_per_s: u64,
}

/// A job in which the advertising peer takes part.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct JobSummary {
    /// The job.
    pub job: JobId,
    /// Its name, for people.
    pub name: String,
    /// The next step.
    pub step: Step,
    /// The last step of the job.
    pub steps: Step,
    /// Members of the view of that step.
    pub members: u16,
}

/// What a peer tells the swarm about itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Advert {
    /// The peer.
    pub peer: PeerId,
    /// The run of its process.
    pub incarnation: Incarnation,
    /// Counts the adverts of this incarnation.
    pub version: u64,
    /// The machine's name, for people.
    pub name: String,
    /// Program and version, for people.
    pub agent: String,
    /// Devices that may train.
    pub devices: Vec<DeviceAdvert>,
    /// Measured links, at most one to each peer.
    pub links: Vec<LinkAdvert>,
    /// Multiaddresses of the control plane.
    pub control_addrs: Vec<String>,
    /// Addresses of the bulk plane.
    pub bulk_addrs: Vec<SocketAddr>,
    /// Jobs in which it takes part, each once.
    pub jobs: Vec<JobSummary>,
}

/// Why an advert is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AdvertError {
    /// The bytes are no advert.
    #[error("malformed advert: {0}")]
    Wire(#[from] WireError),
    /// The signed bytes are too many.
    #[error("advert of {got} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Bytes allowed.
        limit: usize,
        /// Bytes there.
        got: usize,
    },
    /// The advert's peer did not sign it.
    #[error("advert of {peer:#} is not signed by that peer")]
    Signature {
        /// The peer that the advert names.
        peer: PeerId,
    },
    /// The key that should sign the advert is not its peer's.
    #[error("advert of {peer:#} can't be signed by {signer:#}")]
    Signer {
        /// The peer that the advert names.
        peer: PeerId,
        /// The peer of the key.
        signer: PeerId,
    },
    /// A number is impossible.
    #[error("advert of {peer:#}: {field} is {got}, allowed is {min} to {max}")]
    Range {
        /// The advertising peer.
        peer: PeerId,
        /// The field, such as `devices[0].memory_bytes`.
        field: String,
        /// The smallest allowed number.
        min: u64,
        /// The largest allowed number.
        max: u64,
        /// The number there.
        got: u64,
    },
    /// A text or an address is none that a peer can have.
    #[error("advert of {peer:#}: {field} {problem}")]
    Value {
        /// The advertising peer.
        peer: PeerId,
        /// The field, such as `control_addrs[1]`.
        field: String,
        /// What is wrong, and what is allowed.
        problem: &'static str,
    },
    /// The peer signed two different adverts of one incarnation and version.
    #[error(
        "{peer:#} signed two different adverts of incarnation {incarnation}, version {version}"
    )]
    Conflict {
        /// The peer.
        peer: PeerId,
        /// The incarnation of both.
        incarnation: Incarnation,
        /// The version of both.
        version: u64,
    },
    /// The table knows as many peers as it may.
    #[error("advert of {peer:#} has no place: {limit} peers are known already")]
    TableFull {
        /// The advertising peer.
        peer: PeerId,
        /// Peers that a table holds.
        limit: usize,
    },
}

/// An advert and its peer's signature. Keep and forward it as it is: the signature covers the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SignedAdvert {
    /// Wire form of the advert.
    pub advert: Vec<u8>,
    /// ed25519 signature.
    pub signature: [u8; 64],
}

impl SignedAdvert {
    /// Signs an advert with its peer's key. The same advert always gets the same signature.
    pub fn sign(advert: &Advert, key: &SigningKey) -> Result<Self, AdvertError> {
        let (peer, signer) = (advert.peer, PeerId::of_key(key));
        if peer != signer {
            return Err(AdvertError::Signer { peer, signer });
        }
        advert.verify()?;
        let advert = wire::to_bytes(advert);
        check_size(&advert)?;
        let signature = key.sign(&signed_bytes(&advert)).to_bytes();
        Ok(Self { advert, signature })
    }

    /// The advert, if its peer signed it and what it says is possible.
    pub fn verify(&self) -> Result<Advert, AdvertError> {
        check_size(&self.advert)?;
        let advert: Advert = wire::from_bytes(Kind::Advert, &self.advert)?;
        let peer = advert.peer;
        let refused = AdvertError::Signature { peer };
        let key = peer.verifying_key().ok_or_else(|| refused.clone())?;
        let signature = Signature::from_bytes(&self.signature);
        key.verify_strict(&signed_bytes(&self.advert), &signature).map_err(|_| refused)?;
        advert.verify()?;
        Ok(advert)
    }
}

impl Advert {
    /// Checks that no number, text or address in it is impossible; the error names the first that is.
    pub fn verify(&self) -> Result<(), AdvertError> {
        let check = Check { peer: self.peer };
        check.text("name", &self.name)?;
        check.text("agent", &self.agent)?;
        check.count("devices", self.devices.len(), limits::DEVICES_MAX)?;
        check.count("links", self.links.len(), limits::LINKS_MAX)?;
        check.count("control_addrs", self.control_addrs.len(), limits::ADDRS_MAX)?;
        check.count("bulk_addrs", self.bulk_addrs.len(), limits::ADDRS_MAX)?;
        check.count("jobs", self.jobs.len(), limits::JOBS_MAX)?;
        for (i, device) in self.devices.iter().enumerate() {
            let field = |name| format!("devices[{i}].{name}");
            check.text(field("name"), &device.name)?;
            let memory = (1, limits::DEVICE_MEMORY_BYTES_MAX);
            check.range(field("memory_bytes"), device.memory_bytes, memory)?;
            let flops = (1, limits::DEVICE_FLOPS_PER_S_MAX);
            check.range(field("flops_per_s"), device.flops_per_s, flops)?;
            let load = (0, limits::LOAD_PERMILLE_MAX.into());
            check.range(field("load_permille"), device.load_permille.into(), load)?;
        }
        for (i, link) in self.links.iter().enumerate() {
            let field = |name| format!("links[{i}].{name}");
            check.that(field("to"), link.to != self.peer, "is the peer itself")?;
            let first = self.links[..i].iter().all(|before| before.to != link.to);
            check.that(field("to"), first, "is listed twice")?;
            check.range(
                field("rtt_us"),
                link.rtt_us.into(),
                (0, limits::LINK_RTT_US_MAX.into()),
            )?;
            let bits = (1, limits::LINK_BITS_PER_S_MAX);
            check.range(field("bits_per_s"), link.bits_per_s, bits)?;
        }
        for (i, addr) in self.control_addrs.iter().enumerate() {
            check.control_addr(format!("control_addrs[{i}]"), addr)?;
        }
        for (i, addr) in self.bulk_addrs.iter().enumerate() {
            check.bulk_addr(format!("bulk_addrs[{i}]"), *addr)?;
        }
        for (i, job) in self.jobs.iter().enumerate() {
            let field = |name| format!("jobs[{i}].{name}");
            check.text(field("name"), &job.name)?;
            check.range(field("step"), job.step.0, (0, job.steps.0))?;
            check.range(field("members"), job.members.into(), (0, limits::MEMBERS_MAX as u64))?;
            let first = self.jobs[..i].iter().all(|before| before.job != job.job);
            check.that(field("job"), first, "is listed twice")?;
        }
        Ok(())
    }
}

/// The checks of one peer's advert.
struct Check {
    peer: PeerId,
}

impl Check {
    fn that(
        &self,
        field: impl Into<String>,
        holds: bool,
        problem: &'static str,
    ) -> Result<(), AdvertError> {
        if holds {
            return Ok(());
        }
        Err(AdvertError::Value { peer: self.peer, field: field.into(), problem })
    }

    fn range(
        &self,
        field: impl Into<String>,
        got: u64,
        (min, max): (u64, u64),
    ) -> Result<(), AdvertError> {
        if (min..=max).contains(&got) {
            return Ok(());
        }
        Err(AdvertError::Range { peer: self.peer, field: field.into(), min, max, got })
    }

    fn count(&self, field: &str, got: usize, max: usize) -> Result<(), AdvertError> {
        self.range(format!("number of {field}"), got as u64, (0, max as u64))
    }

    fn text(&self, field: impl Into<String>, text: &str) -> Result<(), AdvertError> {
        let field = field.into();
        let max = limits::NAME_BYTES_MAX as u64;
        self.range(format!("length of {field}"), text.len() as u64, (0, max))?;
        self.that(
            field,
            is_printable(text),
            "has control characters, only printable ones are allowed",
        )
    }

    fn control_addr(&self, field: String, addr: &str) -> Result<(), AdvertError> {
        let max = limits::ADDR_BYTES_MAX as u64;
        self.range(format!("length of {field}"), addr.len() as u64, (1, max))?;
        let graphic = addr.starts_with('/') && addr.bytes().all(|byte| byte.is_ascii_graphic());
        self.that(
            field,
            graphic,
            "is no multiaddress: allowed is text such as /ip4/10.0.0.1/tcp/4001",
        )
    }

    fn bulk_addr(&self, field: String, addr: SocketAddr) -> Result<(), AdvertError> {
        let ip = addr.ip();
        self.that(&field, addr.port() != 0, "has port 0, allowed is 1 to 65535")?;
        let dialable = !ip.is_unspecified() && !ip.is_multicast();
        self.that(field, dialable, "can't be dialled: the address of one host is allowed")
    }
}

/// Without control characters and without those that reorder or hide the text around them.
fn is_printable(text: &str) -> bool {
    text.chars().all(|c| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    })
}

fn check_size(advert: &[u8]) -> Result<(), AdvertError> {
    if advert.len() > limits::ADVERT_BYTES_MAX {
        return Err(AdvertError::TooLarge { limit: limits::ADVERT_BYTES_MAX, got: advert.len() });
    }
    Ok(())
}

fn signed_bytes(advert: &[u8]) -> Vec<u8> {
    [SIGNATURE_DOMAIN, advert].concat()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn key(id: u8) -> SigningKey {
        SigningKey::from_bytes(&[id; 32])
    }

    pub(crate) fn advert(id: u8, incarnation: u64, version: u64) -> Advert {
        let peer = PeerId::of_key(&key(id));
        Advert {
            peer,
            incarnation: Incarnation(incarnation),
            version,
            name: "büro-3".into(),
            agent: "p2ptrain/0.1.0".into(),
            devices: vec![DeviceAdvert {
                kind: DeviceKind::Cpu,
                name: "Xeon".into(),
                memory_bytes: 8 << 30,
                flops_per_s: 200_000_000_000,
                load_permille: 20,
            }],
            links: vec![LinkAdvert {
                to: PeerId::of_key(&key(id + 1)),
                rtt_us: 300,
                bits_per_s: 1_000_000_000,
            }],
            control_addrs: vec!["/ip4/127.0.0.1/tcp/4001".into()],
            bulk_addrs: vec!["[::1]:4002".parse().expect("an address")],
            jobs: vec![JobSummary {
                job: JobId::of_job(b"job"),
                name: "gpt".into(),
                step: Step(3),
                steps: Step(200),
                members: 2,
            }],
        }
    }

    #[test]
    fn a_signed_advert_comes_back_and_signing_is_deterministic() {
        let advert = advert(1, 5, 6);
        let signed = SignedAdvert::sign(&advert, &key(1)).expect("plausible");
        assert_eq!(signed.verify(), Ok(advert.clone()));
        assert_eq!(SignedAdvert::sign(&advert, &key(1)), Ok(signed));
    }

    #[test]
    fn only_the_peer_itself_signs_its_advert() {
        let advert = advert(1, 0, 0);
        let (peer, signer) = (advert.peer, PeerId::of_key(&key(2)));
        let wrong = SignedAdvert::sign(&advert, &key(2));
        assert_eq!(wrong, Err(AdvertError::Signer { peer, signer }));
        // Signed by somebody else nevertheless.
        let bytes = wire::to_bytes(&advert);
        let signature = key(2).sign(&signed_bytes(&bytes)).to_bytes();
        let forged = SignedAdvert { advert: bytes.clone(), signature };
        assert_eq!(forged.verify(), Err(AdvertError::Signature { peer }));
        // Signed by the right key, but for another purpose.
        let signature = key(1).sign(&bytes).to_bytes();
        let reused = SignedAdvert { advert: bytes, signature };
        assert_eq!(reused.verify(), Err(AdvertError::Signature { peer }));
    }

    fn check_refused(change: fn(&mut Advert), expected: &str) {
        let mut advert = advert(1, 0, 0);
        change(&mut advert);
        let error = advert.verify().expect_err(expected);
        assert_eq!(error.to_string(), format!("advert of {:#}: {expected}", advert.peer));
        assert_eq!(SignedAdvert::sign(&advert, &key(1)), Err(error.clone()));
        // A peer that signs it nevertheless is refused by the others.
        let bytes = wire::to_bytes(&advert);
        let signature = key(1).sign(&signed_bytes(&bytes)).to_bytes();
        assert_eq!(SignedAdvert { advert: bytes, signature }.verify(), Err(error));
    }

    #[test]
    fn impossible_numbers_are_refused_by_field_and_range() {
        let memory = "devices[0].memory_bytes is 0, allowed is 1 to 1125899906842624";
        check_refused(|a| a.devices[0].memory_bytes = 0, memory);
        let flops = "devices[0].flops_per_s is 1000000000000000001, allowed is 1 to \
                     1000000000000000000";
        check_refused(|a| a.devices[0].flops_per_s = limits::DEVICE_FLOPS_PER_S_MAX + 1, flops);
        let load = "devices[0].load_permille is 1001, allowed is 0 to 1000";
        check_refused(|a| a.devices[0].load_permille = 1001, load);
        let rtt = "links[0].rtt_us is 60000001, allowed is 0 to 60000000";
        check_refused(|a| a.links[0].rtt_us = 60_000_001, rtt);
        let bits = "links[0].bits_per_s is 0, allowed is 1 to 100000000000000";
        check_refused(|a| a.links[0].bits_per_s = 0, bits);
        let step = "jobs[0].step is 201, allowed is 0 to 200";
        check_refused(|a| a.jobs[0].step = Step(201), step);
        let members = "jobs[0].members is 257, allowed is 0 to 256";
        check_refused(|a| a.jobs[0].members = 257, members);
        let many = "number of control_addrs is 33, allowed is 0 to 32";
        check_refused(|a| a.control_addrs = vec!["/ip4/1.2.3.4".into(); 33], many);
    }

    #[test]
    fn impossible_texts_and_addresses_are_refused_by_field() {
        check_refused(|a| a.name = "n".repeat(65), "length of name is 65, allowed is 0 to 64");
        let control = "name has control characters, only printable ones are allowed";
        check_refused(|a| a.name = "a\u{1b}[2J".into(), control);
        check_refused(|a| a.name = "a\u{202e}b".into(), control);
        let multiaddr = "control_addrs[0] is no multiaddress: allowed is text such as \
                         /ip4/10.0.0.1/tcp/4001";
        check_refused(|a| a.control_addrs[0] = "10.0.0.1".into(), multiaddr);
        check_refused(|a| a.control_addrs[0] = "/ip4/ 10".into(), multiaddr);
        let port = "bulk_addrs[0] has port 0, allowed is 1 to 65535";
        check_refused(|a| a.bulk_addrs[0].set_port(0), port);
        let host = "bulk_addrs[0] can't be dialled: the address of one host is allowed";
        check_refused(|a| a.bulk_addrs[0].set_ip([0, 0, 0, 0].into()), host);
        check_refused(|a| a.bulk_addrs[0].set_ip([224, 0, 0, 1].into()), host);
        check_refused(|a| a.links[0].to = a.peer, "links[0].to is the peer itself");
        check_refused(|a| a.links.push(a.links[0].clone()), "links[1].to is listed twice");
        check_refused(|a| a.jobs.push(a.jobs[0].clone()), "jobs[1].job is listed twice");
    }

    #[test]
    fn an_oversized_advert_is_refused_unread() {
        let (limit, got) = (limits::ADVERT_BYTES_MAX, limits::ADVERT_BYTES_MAX + 1);
        let signed = SignedAdvert { advert: vec![0; got], signature: [0; 64] };
        assert_eq!(signed.verify(), Err(AdvertError::TooLarge { limit, got }));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_refused(at in any::<prop::sample::Index>(), bit in 0_u32..8) {
            let mut signed = SignedAdvert::sign(&advert(1, 5, 6), &key(1)).expect("plausible");
            let n = signed.advert.len();
            let at = at.index(n + 64);
            let byte =
                if at < n { &mut signed.advert[at] } else { &mut signed.signature[at - n] };
            *byte ^= 1_u8 << bit;
            prop_assert!(signed.verify().is_err());
        }

        #[test]
        fn random_bytes_never_panic(advert in prop::collection::vec(any::<u8>(), 0..400)) {
            let signed = SignedAdvert { advert, signature: [1; 64] };
            prop_assert!(signed.verify().is_err());
        }
    }
}
