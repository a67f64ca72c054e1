//! What may never be shown, as types: [`Secret`] for values, [`SafeUrl`] for URLs.
//!
//! A secret is hidden by what it is, not by everybody's care at every log line: only
//! [`Secret::expose`] shows it, so that is the one word a reviewer searches for.

use std::fmt;

use url::Url;
use zeroize::Zeroize;

/// A value that Debug and Display show as `***` and that is wiped from memory on drop.
#[derive(Clone)]
pub struct Secret<T: Zeroize>(T);

/// Shows a URL without user info, query and fragment: a signed URL's secret is in its query.
#[derive(Clone, Copy)]
pub struct SafeUrl<'a>(pub &'a Url);

// === impl Secret ===

impl<T: Zeroize> Secret<T> {
    pub fn new(value: T) -> Self {
        Secret(value)
    }

    /// The value itself. It belongs on its way to where it is needed and nowhere else.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T: Zeroize> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

// === impl SafeUrl ===

impl fmt::Display for SafeUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.0;
        write!(
            f,
            "{}://{}",
            url.scheme(),
            url.host_str().unwrap_or_default()
        )?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(url.path())
    }
}

impl fmt::Debug for SafeUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::new(String::from("hunter2"));
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "*** *** Some(***)"
        );
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn only_scheme_host_port_and_path_of_a_url_are_shown() {
        let url = Url::parse("https://user:hunter2@cdn.example:8443/a/b?sig=hunter2#c").unwrap();
        assert_eq!(SafeUrl(&url).to_string(), "https://cdn.example:8443/a/b");
        assert_eq!(
            format!("{:?}", SafeUrl(&url)),
            "https://cdn.example:8443/a/b"
        );
    }
}
