//! The same server behind TLS: an authority of its own, the server's certificate and one for a client, all made by `openssl`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::serve::Listener;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::{ApiServer, Extra, Running, server};
use crate::command;

const CONFIG: &str = "[req]
distinguished_name = dn
[dn]
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
[server]
basicConstraints = CA:FALSE
subjectAltName = IP:127.0.0.1
extendedKeyUsage = serverAuth
[client]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
";

/// Signs certificates; they and their keys are gone when it is dropped.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM, PKCS 8.
    pub key: PathBuf,
}

impl Authority {
    /// One that nobody trusts yet.
    ///
    /// # Errors
    /// `openssl` is not there, or complains.
    pub fn new() -> Result<Self> {
        let authority = Authority { dir: TempDir::new()? };
        std::fs::write(authority.file("config"), CONFIG)?;
        authority.make("authority", false)?;
        Ok(authority)
    }

    /// Its own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.file("authority.crt")
    }

    /// For a server at 127.0.0.1.
    ///
    /// # Errors
    /// `openssl` complains.
    pub fn server(&self) -> Result<Certificate> {
        self.make("server", true)
    }

    /// For a client.
    ///
    /// # Errors
    /// `openssl` complains.
    pub fn client(&self) -> Result<Certificate> {
        self.make("client", true)
    }

    fn make(&self, what: &str, signed: bool) -> Result<Certificate> {
        let made = Certificate {
            certificate: self.file(&format!("{what}.crt")),
            key: self.file(&format!("{what}.key")),
        };
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]);
        openssl.arg("-config").arg(self.file("config")).args(["-extensions", what]);
        openssl.arg("-subj").arg(format!("/O=manx-tests/CN={what}"));
        openssl.arg("-keyout").arg(&made.key).arg("-out").arg(&made.certificate);
        if signed {
            openssl.arg("-CA").arg(self.certificate()).arg("-CAkey").arg(self.file("authority.key"));
        }
        command::output(&mut openssl)?;
        Ok(made)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl ApiServer {
    /// Serves behind TLS on this listener too, until what is returned is dropped. `clients`: the authority of the certificates
    /// that clients must have; `None`: they need none.
    ///
    /// # Errors
    /// The certificates cannot be read, or no thread could be started.
    pub fn serve_tls(
        &self,
        listener: TcpListener,
        own: &Certificate,
        clients: Option<&Path>,
    ) -> Result<Extra> {
        let acceptor = TlsAcceptor::from(Arc::new(config(own, clients)?));
        listener.set_nonblocking(true)?;
        let router = server::router(self.shared.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("apiserver-tls".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let tcp = tokio::net::TcpListener::from_std(listener).expect("a listener");
                tokio::spawn(async move { axum::serve(Tls { tcp, acceptor }, router).await });
                let _ = stopped.await;
            });
            runtime.shutdown_background();
        })?;
        Ok(Extra(Some(Running { stop, thread })))
    }
}

fn config(own: &Certificate, clients: Option<&Path>) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(authority).context("the clients' authority")?)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let certificate = CertificateDer::from_pem_file(&own.certificate).context("the certificate")?;
    let key = PrivateKeyDer::from_pem_file(&own.key).context("its key")?;
    Ok(builder.with_single_cert(vec![certificate], key)?)
}

struct Tls {
    tcp: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    /// Who cannot agree with us is let go: the next one.
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok((stream, address)) = self.tcp.accept().await
                && let Ok(stream) = self.acceptor.accept(stream).await
            {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
