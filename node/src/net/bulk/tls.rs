//! TLS of the bulk plane: libp2p's certificates (a self-signed certificate that the peer's ed25519
//! key vouches for) on both sides of a quinn connection.
//!
//! The certificates come from `libp2p-tls`; the configuration around them is our own, because that
//! crate's asks for ChaCha20 first, which costs several times the processor time of AES-GCM where
//! the processor has AES instructions.

use std::sync::Arc;

use libp2p_tls::certificate;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use crate::identity::{self, Identity, PeerId};

/// Peers are known by their key; the name is there because TLS wants one.
pub(crate) const SERVER_NAME: &str = "p2ptrain";

/// Keeps a bulk endpoint and a libp2p one from talking to each other.
const ALPN: &[u8] = b"p2ptrain-bulk/1";

/// This node's certificate.
pub(crate) struct Credentials {
    provider: Arc<CryptoProvider>,
    certificate: Arc<CertifiedKey>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("making the node's certificate: {0}")]
    Generate(#[from] certificate::GenError),
    #[error("using the node's certificate: {0}")]
    Key(#[from] Error),
}

/// Accepts exactly one certificate, that of a peer whose ed25519 key vouches for it.
#[derive(Debug)]
struct PeerVerifier {
    expected: Option<PeerId>,
}

#[derive(Debug)]
struct OwnCertificate(Arc<CertifiedKey>);

impl Credentials {
    pub(crate) fn new(identity: &Identity) -> Result<Self, CredentialsError> {
        let (certificate, key) = certificate::generate(&identity.keypair())?;
        let key = aws_lc_rs::sign::any_ecdsa_type(&key)?;
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = cipher_suites();
        Ok(Self {
            provider: Arc::new(provider),
            certificate: Arc::new(CertifiedKey::new(vec![certificate], key)),
        })
    }

    /// For connections to `peer` and nobody else.
    pub(crate) fn client_config(&self, peer: PeerId) -> Arc<QuicClientConfig> {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3 suites")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PeerVerifier { expected: Some(peer) }))
            .with_client_cert_resolver(Arc::new(OwnCertificate(Arc::clone(&self.certificate))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Arc::new(config.try_into().expect("the provider has QUIC's initial suite"))
    }

    /// For connections from any peer that has a certificate.
    pub(crate) fn server_config(&self) -> Arc<QuicServerConfig> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3 suites")
            .with_client_cert_verifier(Arc::new(PeerVerifier { expected: None }))
            .with_cert_resolver(Arc::new(OwnCertificate(Arc::clone(&self.certificate))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Without tickets each connection shows its certificate anew.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config.try_into().expect("the provider has QUIC's initial suite"))
    }
}

/// The peer at the other end of a connection that passed TLS.
pub(crate) fn remote_peer(connection: &quinn::Connection) -> Option<PeerId> {
    let certificates = connection.peer_identity()?;
    let certificates = certificates.downcast_ref::<Vec<CertificateDer<'static>>>()?;
    let [certificate] = certificates.as_slice() else { return None };
    identity::from_libp2p(&certificate::parse(certificate).ok()?.peer_id())
}

fn cipher_suites() -> Vec<rustls::SupportedCipherSuite> {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256 as AES_128, TLS13_AES_256_GCM_SHA384 as AES_256,
        TLS13_CHACHA20_POLY1305_SHA256 as CHACHA20,
    };
    // The initial packets of QUIC always need AES-128, so that it stays in the list.
    if has_aes() { vec![AES_128, AES_256, CHACHA20] } else { vec![CHACHA20, AES_128, AES_256] }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

impl PeerVerifier {
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        if !intermediates.is_empty() {
            return Err(CertificateError::BadEncoding.into());
        }
        let parsed = parse(certificate)?;
        let peer = identity::from_libp2p(&parsed.peer_id());
        let peer = peer.ok_or(CertificateError::ApplicationVerificationFailure)?;
        match self.expected {
            Some(expected) if expected != peer => Err(Error::General(format!(
                "the certificate belongs to {peer}, expected {expected}"
            ))),
            _ => Ok(()),
        }
    }

    fn verify_signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        parse(certificate)?
            .verify_signature(signed.scheme, message, signed.signature())
            .map_err(|_| CertificateError::BadSignature)?;
        Ok(HandshakeSignatureValid::assertion())
    }
}

/// Parses and verifies what the certificate claims: its own signature and the ed25519 key's.
fn parse<'a>(
    certificate: &'a CertificateDer<'a>,
) -> Result<certificate::P2pCertificate<'a>, CertificateError> {
    certificate::parse(certificate).map_err(|_| CertificateError::BadEncoding)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
