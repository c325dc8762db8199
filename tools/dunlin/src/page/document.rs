//! The document around a page's sections: head, style, landmarks, and the data as JSON.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Everything that is seen.
const STYLE: &str = include_str!("style.css");

/// Nothing is fetched, nothing runs; only the style in the page counts, and the empty icon.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
                      base-uri 'none'; form-action 'none'";

/// A part of a page, under a heading of its own.
pub(crate) struct Section {
    /// What links lead to it by: lower-case letters and hyphens.
    pub(crate) id: &'static str,
    /// Its heading.
    pub(crate) heading: &'static str,
    /// What is in it.
    pub(crate) body: Markup,
}

/// Data that goes with the page, for programs.
pub(crate) struct Embedded<'a> {
    /// The id of the element that holds it.
    pub(crate) id: &'static str,
    /// The data.
    pub(crate) json: &'a str,
}

/// The whole page. `header` is what stands above the sections, with the page's `h1` in it.
pub(crate) fn document(
    title: &str,
    header: &Markup,
    sections: &[Section],
    data: &Embedded<'_>,
) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (title) }
                // A page without an icon makes browsers ask for one.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#content" { "Skip to the figures" }
                header { (header) }
                nav aria-label="Sections" {
                    ul {
                        @for section in sections {
                            li { a href={ "#" (section.id) } { (section.heading) } }
                        }
                    }
                }
                main id="content" tabindex="-1" {
                    @for section in sections {
                        section id=(section.id) aria-labelledby={ (section.id) "-heading" } {
                            h2 id={ (section.id) "-heading" } { (section.heading) }
                            (section.body)
                        }
                    }
                }
                footer {
                    p {
                        "Made by dunlin " (env!("CARGO_PKG_VERSION")) ". All that is shown, and \
                         more, is in this page as JSON: the element "
                        code { "script#" (data.id) } "."
                    }
                }
                script type="application/json" id=(data.id) { (PreEscaped(inert(data.json))) }
            }
        }
    };
    page.into_string()
}

/// JSON without a character that could end the element around it or be taken for markup. In JSON
/// these stand in strings only, where an escape means the same.
fn inert(json: &str) -> String {
    let mut inert = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                inert.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            _ => inert.push(letter),
        }
    }
    inert
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_can_not_end_its_element_and_means_the_same() {
        let text = "</script><!-- <script> & \u{2028} \" \\ é";
        let json = serde_json::to_string(text).unwrap();
        let inert = inert(&json);
        assert!(!inert.contains(['<', '>', '&', '\u{2028}']), "{inert}");
        assert_eq!(serde_json::from_str::<String>(&inert).unwrap(), text);
    }

    #[test]
    fn the_style_ends_where_it_should() {
        assert!(!STYLE.contains("</"));
        for outside in ["url(", "@import", "http"] {
            assert!(!STYLE.contains(outside), "{outside}");
        }
    }
}
