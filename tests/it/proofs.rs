//! What is granted to certain clients is asked for again: an upstream's yes ages. Security row T36.
//!
//! Time passes by making the records older, while the program is stopped.

use std::fs;

use portcullis::oci::Digest;

use crate::support::canary::secret;
use crate::support::herd::at_once;
use crate::support::image::Image;
use crate::support::proxy::{Proxy, Setup};
use crate::support::stores::azurite;
use crate::support::upstream::{Fault, Upstream};
use crate::support::{KIB, at, eventually};

/// The tag is asked for again each time, but never followed.
const TAGS: &str = r#"immutable = ["registry.example/**:1"]
fresh_for = "0s"
missing_for = "1s""#;

fn granted(setup: Setup) -> Setup {
    let login = concat!(
        "username = \"corp\"\npassword = \"",
        secret!("of-the-registry"),
        "\"\n"
    );
    let grants = r#"grants = [{ client = "127.0.0.0/8", repositories = ["**"] }]"#;
    setup.upstream(&format!("{login}{grants}"))
}

/// A registry with an image that was pulled a while ago.
struct Scene {
    upstream: Upstream,
    proxy: Proxy,
    image: Image,
    /// Requests up to now.
    before: usize,
}

impl Scene {
    /// `change` makes the registry somebody's; `then` is what happened before the time passed.
    fn with(minutes: i64, change: impl FnOnce(Setup) -> Setup, then: impl FnOnce(&Proxy)) -> Self {
        let upstream = Upstream::start();
        let image = Image::with_layers(&[100 * KIB]);
        upstream.image("demo/app", "1", &image);
        let mut proxy = change(Setup::new(&upstream).section("tags", TAGS)).start();
        proxy.get(&at("demo/app/manifests/1")).assert(200);
        for blob in image.blobs() {
            let digest = Digest::sha256(blob);
            let path = at(&format!("demo/app/blobs/{digest}"));
            proxy.get(&path).assert_whole(blob);
            proxy.wait_until_stored(&digest);
        }
        then(&proxy);
        assert!(proxy.terminate().success());
        age_links(&proxy, minutes * 60);
        let before = upstream.requests().len();
        proxy.start_again();
        Scene {
            upstream,
            proxy,
            image,
            before,
        }
    }

    fn after(minutes: i64) -> Self {
        Scene::with(minutes, granted, |_| ())
    }

    fn manifest(&self) -> String {
        at(&format!(
            "demo/app/manifests/{}",
            self.image.manifest.digest()
        ))
    }

    fn layer(&self) -> String {
        at(&format!(
            "demo/app/blobs/{}",
            Digest::sha256(&self.image.layers[0])
        ))
    }

    /// Everything by digest, and a tag that never changes.
    fn paths(&self) -> [String; 3] {
        [self.manifest(), self.layer(), at("demo/app/manifests/1")]
    }

    /// Methods and paths of what went upstream since.
    fn asked(&self) -> Vec<(String, String)> {
        let requests = self.upstream.requests();
        let since = requests.into_iter().skip(self.before);
        since
            .map(|request| (request.method, request.path))
            .collect()
    }

    #[track_caller]
    fn assert_served(&self) {
        let image = &self.image;
        self.proxy
            .get(&self.manifest())
            .assert_whole(&image.manifest.bytes);
        self.proxy.get(&self.layer()).assert_whole(&image.layers[0]);
    }
}

/// Makes every proof of the proxy's store that many seconds older.
fn age_links(proxy: &Proxy, seconds: i64) {
    let file = proxy
        .store()
        .join("v1/repos/registry.example/demo/app/_links");
    let text = fs::read_to_string(&file).unwrap();
    let mut older = String::new();
    for line in text.lines() {
        let (rest, proved) = line.rsplit_once(' ').unwrap();
        let proved: i64 = proved.parse().unwrap();
        older += &format!("{rest} {}\n", proved - seconds);
    }
    fs::write(&file, older).unwrap();
}

#[test]
fn a_young_yes_counts_and_an_older_one_is_asked_for_again_behind_the_answer() {
    let scene = Scene::after(14);
    scene.assert_served();
    assert_eq!(scene.asked(), []);

    let mut scene = Scene::after(16);
    let gate = scene.upstream.hold("demo/app", 0);
    scene.assert_served();
    gate.reached();
    scene.assert_served();
    gate.open();
    eventually("both answers", || scene.asked().len() >= 2);
    scene.assert_served();
    let mut asked = scene.asked();
    asked.sort();
    let path = |path: String| ("HEAD".to_owned(), path.replace("/registry.example", ""));
    let mut once = [path(scene.manifest()), path(scene.layer())];
    once.sort();
    assert_eq!(asked, once, "each once, and nothing was fetched");
    // It is as good as new, and after a restart too.
    assert!(scene.proxy.terminate().success());
    scene.proxy.start_again();
    scene.assert_served();
    assert_eq!(scene.asked().len(), 2);
}

#[test]
fn an_answer_waits_for_a_yes_that_is_older_than_an_hour() {
    let scene = Scene::after(61);
    let gate = scene.upstream.hold("blobs", 0);
    let path = scene.layer();
    let requests = vec![("GET", path.clone()); 20];
    std::thread::scope(|scope| {
        let herd = scope.spawn(|| at_once(scene.proxy.address, &requests));
        gate.reached();
        gate.open();
        for (answer, _) in herd.join().unwrap() {
            answer.assert_whole(&scene.image.layers[0]);
        }
    });
    assert_eq!(scene.asked().len(), 1, "{:?}", scene.asked());
}

/// Whatever the words of the no are.
#[test]
fn what_the_upstream_takes_back_is_served_no_more() {
    for status in [401, 403, 404] {
        let scene = Scene::after(61);
        let sent = scene.upstream.sent("demo/app/blobs");
        let no = Fault::Answer(status, Vec::new(), Vec::new());
        scene.upstream.always("demo/app", no);
        for path in scene.paths() {
            let refused = scene.proxy.get(&path);
            assert!(refused.status >= 400, "{status} {path}: {}", refused.status);
        }
        // Another repository that has the same is no way back to this one.
        let layer = &scene.image.layers[0];
        scene.upstream.blob("demo/base", layer.clone());
        let elsewhere = scene.layer().replace("demo/app", "demo/base");
        scene.proxy.get(&elsewhere).assert_whole(layer);
        assert!(scene.proxy.get(&scene.layer()).status >= 400);
        // And when it says yes again, nothing has to be fetched.
        scene.upstream.behave();
        eventually("a yes", || scene.proxy.get(&scene.layer()).status == 200);
        assert_eq!(scene.upstream.sent("demo/app/blobs"), sent);
    }
    // Within the hour whoever comes first is served once more.
    let scene = Scene::after(20);
    let no = Fault::Answer(403, Vec::new(), Vec::new());
    scene.upstream.always("demo/app", no);
    scene.assert_served();
    for path in scene.paths() {
        eventually("a no", || scene.proxy.get(&path).status >= 400);
    }
}

/// Nor is it served stale.
#[test]
fn a_no_counts_when_the_upstream_is_down_afterwards() {
    let mut scene = Scene::after(61);
    let no = Fault::Answer(403, Vec::new(), Vec::new());
    scene.upstream.always("demo/app", no);
    for path in scene.paths() {
        scene.proxy.get(&path).assert_error(403, "DENIED");
    }
    scene.upstream.stop();
    for path in scene.paths() {
        let refused = scene.proxy.get(&path);
        assert!(refused.status >= 500, "{path}: {}", refused.status);
    }
}

/// Upstreams know manifests and blobs by different paths, and answer 404 at the other one.
#[test]
fn a_question_of_the_wrong_kind_ends_nothing() {
    for change in [granted, |setup| setup] {
        let mut scene = Scene::with(61, change, |_| ());
        let other = |path: &str, from: &str, to: &str| path.replace(from, to);
        let wrong = [
            other(&scene.layer(), "/blobs/", "/manifests/"),
            other(&scene.manifest(), "/manifests/", "/blobs/"),
        ];
        for path in wrong {
            scene.proxy.head(&path);
        }
        scene.upstream.stop();
        scene.assert_served();
    }
}

#[test]
fn a_registry_may_have_no_head_for_blobs() {
    let scene = Scene::after(61);
    let no_such_blob = br#"{"errors": [{"code": "BLOB_UNKNOWN"}]}"#;
    let no_head = Fault::AnswerHead(404, no_such_blob.to_vec());
    scene.upstream.always("/blobs/", no_head);
    let sent = scene.upstream.sent("/blobs/");
    scene.assert_served();
    assert_eq!(
        scene.upstream.sent("/blobs/"),
        sent + 1,
        "one byte shows it"
    );
}

#[test]
fn an_upstream_that_cannot_say_is_believed_as_long_as_for_tags() {
    let mut scene = Scene::after(23 * 60);
    scene.upstream.stop();
    scene.assert_served();
    scene.proxy.get(&at("demo/app/manifests/1")).assert(200);

    let mut scene = Scene::after(25 * 60);
    scene.upstream.stop();
    for path in [scene.manifest(), scene.layer()] {
        let refused = scene.proxy.get(&path);
        assert!(refused.status >= 500, "{path}: {}", refused.status);
    }
}

#[test]
fn what_everybody_may_read_or_an_operator_keeps_is_not_asked_for_again() {
    let day = 24 * 60;
    let scene = Scene::with(2 * day, |setup| setup, |_| ());
    scene.assert_served();
    assert_eq!(scene.asked(), []);

    let pin = |proxy: &Proxy| {
        let image = "registry.example/demo/app:1";
        proxy
            .run(|setup| setup, &["cache", "pin", image])
            .assert_success();
    };
    let scene = Scene::with(2 * day, granted, pin);
    scene
        .upstream
        .always("demo/app", Fault::Answer(404, Vec::new(), Vec::new()));
    scene.assert_served();
    assert_eq!(scene.asked(), []);
    let image = "registry.example/demo/app:1";
    let unpin = ["cache", "unpin", image];
    scene.proxy.run(|setup| setup, &unpin).assert_success();
    scene
        .proxy
        .get(&scene.layer())
        .assert_error(404, "BLOB_UNKNOWN");

    // Offline there is nobody to ask.
    let mut scene = Scene::after(2 * day);
    assert!(scene.proxy.terminate().success());
    let offline = |setup: Setup| setup.section("server", "offline = true");
    scene.proxy.start_again_with(offline);
    scene.assert_served();
    assert_eq!(scene.asked(), []);
}

/// What one replica heard is not believed for longer by one that comes later.
#[test]
fn a_no_takes_the_yes_out_of_the_shared_store() {
    let azurite = azurite();
    let name = azurite.fresh_container();
    let container = azurite.container(&name);
    let links = |at_least: usize| container.names("/_links/").len() >= at_least;
    let shared = |setup| granted(setup).shared(azurite, &name);
    let scene = Scene::with(61, shared, |_| eventually("links there", || links(3)));
    let newcomer = || shared(Setup::new(&scene.upstream)).start();
    newcomer().get(&scene.layer()).assert(200);
    assert_eq!(scene.asked(), [], "their yes is young");

    let no = Fault::Answer(403, Vec::new(), Vec::new());
    scene.upstream.always("demo/app", no);
    for path in scene.paths() {
        scene.proxy.get(&path).assert_error(403, "DENIED");
    }
    assert!(
        !links(2),
        "only the config's is left, which nobody asked for"
    );
    newcomer().get(&scene.layer()).assert_error(403, "DENIED");
}
