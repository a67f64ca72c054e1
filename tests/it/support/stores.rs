//! The object store that replicas share: Azurite, which is Azure Blob Storage on loopback.

use std::net::TcpStream;
use std::sync::{Arc, OnceLock};

use futures_util::TryStreamExt as _;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use portcullis::oci::Digest;

use super::image::random;
use super::proxy::Setup;

const ACCOUNT: &str = "devstoreaccount1";

#[derive(Debug)]
pub struct Azurite {
    port: u16,
}

/// What lies in a container, past everything that the product has in between.
#[derive(Clone, Debug)]
pub struct Container(Arc<dyn ObjectStore>);

/// The Azurite of the whole run.
pub fn azurite() -> &'static Azurite {
    static SHARED: OnceLock<Azurite> = OnceLock::new();
    SHARED.get_or_init(|| {
        let port = 10000;
        if let Err(error) = TcpStream::connect(("127.0.0.1", port)) {
            panic!("no Azurite on 127.0.0.1:{port} ({error}): start azurite-blob there");
        }
        Azurite { port }
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap());
    runtime.block_on(future)
}

impl Azurite {
    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)
    }

    /// The name of a container that no other test uses; who opens it first makes it.
    #[expect(clippy::unused_self, reason = "the container is one of this Azurite")]
    pub fn fresh_container(&self) -> String {
        format!("test-{}", &Digest::sha256(&random(8)).hex()[..12])
    }

    /// Lines for `[store.shared]`.
    pub fn lines(&self, container: &str) -> String {
        format!(
            "url = \"az://{ACCOUNT}/{container}/fleet\"\ncredential = \"emulator\"\n\
             endpoint = \"{}\"",
            self.endpoint()
        )
    }

    pub fn container(&self, name: &str) -> Container {
        let objects = MicrosoftAzureBuilder::new()
            .with_use_emulator(true)
            .with_endpoint(self.endpoint())
            .with_container_name(name)
            .with_allow_http(true)
            .build();
        Container(Arc::new(objects.unwrap()))
    }
}

impl Container {
    /// The names of everything whose name contains `fragment`, in order.
    pub fn names(&self, fragment: &str) -> Vec<String> {
        let listed: Vec<_> = block_on(self.0.list(None).try_collect()).unwrap();
        let names = listed.into_iter().map(|meta| meta.location.to_string());
        let mut names: Vec<String> = names.filter(|name| name.contains(fragment)).collect();
        names.sort();
        names
    }

    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let read = async { self.0.get(&Key::from(name)).await?.bytes().await };
        match block_on(read) {
            Ok(bytes) => Some(bytes.into()),
            Err(object_store::Error::NotFound { .. }) => None,
            Err(error) => panic!("{name}: {error}"),
        }
    }

    pub fn write(&self, name: &str, bytes: Vec<u8>) {
        let payload = PutPayload::from(bytes);
        block_on(self.0.put(&Key::from(name), payload)).unwrap();
    }
}

impl Setup {
    /// This proxy keeps what it has in a container of `azurite` too.
    pub fn shared(self, azurite: &Azurite, container: &str) -> Self {
        self.section("store.shared", &azurite.lines(container))
    }
}
