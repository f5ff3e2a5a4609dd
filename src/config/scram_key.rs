//! What one connection leaves for the next.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::protocol::scram::ScramKey;

/// The key that the last login by SCRAM derived, which spares the next one most of its work. It is shared by
/// the clones of a configuration, and of no account when two are compared.
#[derive(Clone, Default)]
pub(crate) struct KeptKey(Arc<Mutex<Option<ScramKey>>>);

impl KeptKey {
    pub(crate) fn get(&self) -> Option<ScramKey> {
        self.key().clone()
    }

    pub(crate) fn keep(&self, key: ScramKey) {
        *self.key() = Some(key);
    }

    fn key(&self) -> MutexGuard<'_, Option<ScramKey>> {
        // Nothing in here panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for KeptKey {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for KeptKey {}

impl fmt::Debug for KeptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::protocol::scram::{ChannelBinding, ClientFirst, Progress, ScramKey};

    fn key() -> ScramKey {
        let client = ClientFirst::new([0; 18], ChannelBinding::Unsupported);
        let first = b"r=AAAAAAAAAAAAAAAAAAAAAAAAserver,s=c2FsdA==,i=1";
        let derivation = client.server_first(first, "pencil").unwrap();
        let Progress::Done(client) = derivation.run(1) else { panic!("there was one iteration") };
        client.server_final(b"v=j+2OWbm7Fe8Zcht4fO8jAzXRqBfaWVQgMAsKoqYG3p0=").unwrap()
    }

    #[test]
    fn clones_share_the_key_until_the_password_is_set() {
        let mut config = Config::new();
        let clone = config.clone();
        clone.scram_key.keep(key());
        assert_eq!(config.scram_key.get(), Some(key()));
        assert_eq!(config, Config::new());
        config.password("pencil");
        assert_eq!((config.scram_key.get(), clone.scram_key.get()), (None, Some(key())));
    }
}
