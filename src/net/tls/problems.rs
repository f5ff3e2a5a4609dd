//! What rustls complains of, in words that say what to change.

use std::borrow::Cow;
use std::io;

use rustls::{AlertDescription, CertificateError, Error, PeerMisbehaved};

use super::verifier::RootOutOfDate;

/// What TLS had against the connection, if that is why it broke.
pub(crate) fn of(error: &io::Error) -> Option<Cow<'static, str>> {
    Some(explain(error.get_ref()?.downcast_ref()?))
}

fn explain(error: &Error) -> Cow<'static, str> {
    let known = match error {
        Error::InvalidCertificate(error) => return explain_certificate(error),
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::PeerIncompatible(_) => Some(VERSIONS),
        Error::PeerMisbehaved(PeerMisbehaved::SignedKxWithWrongAlgorithm) => Some(
            "the server signed with an algorithm that was not agreed on; a key that only does RSA-PSS \
             needs TLS 1.3 on both sides",
        ),
        _ => None,
    };
    known.map_or_else(|| error.to_string().into(), Cow::Borrowed)
}

#[cfg(feature = "tls12")]
const VERSIONS: &str = "the server offers no version or algorithm of TLS that is spoken here: set its \
                        ssl_max_protocol_version, and this side's, to TLSv1.2 or TLSv1.3";
#[cfg(not(feature = "tls12"))]
const VERSIONS: &str = "the server offers no version or algorithm of TLS that is spoken here: set its \
                        ssl_max_protocol_version to TLSv1.3, or switch on pglock's feature `tls12`";

fn explain_certificate(error: &CertificateError) -> Cow<'static, str> {
    use CertificateError as E;
    match error {
        E::UnknownIssuer => "no root certificate vouches for the server's: name the file of the \
                             authority that issued it in sslrootcert"
            .into(),
        E::Expired | E::ExpiredContext { .. } => {
            "the server's certificate has expired: renew it, or set this machine's clock".into()
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: set the clock of this machine, or of the one \
             that issued it"
                .into()
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => format!(
            "the server's certificate is for another host: connect by a name that it is for, or have \
             one issued for this name ({error})"
        )
        .into(),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the server's certificate is not one for servers: have one issued with the extended key \
             usage serverAuth, or without any"
                .into()
        }
        E::Other(other) if other.0.is::<RootOutOfDate>() => other.0.to_string().into(),
        E::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "the server's certificate is one of an authority: have one issued for the server, or list \
             this one itself in sslrootcert"
                .into()
        }
        _ => format!("the server's certificate cannot be used: {error}").into(),
    }
}

fn explain_alert(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        AlertDescription::UnknownCA => Some(
            "the server does not trust the authority of the client's certificate: show another one in \
             sslcert, or add the authority to the server's ssl_ca_file",
        ),
        AlertDescription::CertificateRequired => Some(
            "the server demands a client certificate: name it in sslcert, and its key in sslkey",
        ),
        AlertDescription::CertificateExpired => {
            Some("the client's certificate, the one in sslcert, has expired: renew it")
        }
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => Some(VERSIONS),
        _ => None,
    }
}
