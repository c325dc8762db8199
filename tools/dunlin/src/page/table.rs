//! Tables whose rows hold a piece of the picture. On a narrow screen each row becomes a block, with
//! the picture below its figures; roles are said outright, since a browser that lays a table out
//! otherwise may stop calling it one.

use maud::{Markup, html};

/// A column.
pub(crate) struct Column {
    /// What stands above it.
    pub(crate) title: &'static str,
    /// How its cells look.
    pub(crate) form: Form,
}

/// How a column's cells look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// What the row is about.
    Name,
    /// Words.
    Text,
    /// Where it was: a word that needs no title beside it.
    Place,
    /// A figure.
    Number,
    /// A piece of the picture; nothing that is not in the other cells too.
    Picture,
}

impl Column {
    /// A column.
    pub(crate) const fn new(title: &'static str, form: Form) -> Self {
        Self { title, form }
    }
}

impl Form {
    fn class(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Text => "text",
            Self::Place => "place",
            Self::Number => "number",
            Self::Picture => "picture",
        }
    }
}

/// A table. `axis` stands above the pictures.
pub(crate) fn table(
    caption: &Markup,
    columns: &[Column],
    axis: Option<&Markup>,
    rows: &[Vec<Markup>],
) -> Markup {
    html! {
        table role="table" {
            caption { (caption) }
            thead role="rowgroup" {
                tr role="row" {
                    @for column in columns {
                        th.(column.form.class()) scope="col" role="columnheader" {
                            @if column.form == Form::Picture {
                                span.unseen { (column.title) }
                                @if let Some(axis) = axis { (axis) }
                            } @else {
                                (column.title)
                            }
                        }
                    }
                }
            }
            tbody role="rowgroup" {
                @for row in rows {
                    tr role="row" {
                        @for (column, cell) in columns.iter().zip(row) {
                            @match column.form {
                                Form::Name => th.name scope="row" role="rowheader" { (cell) },
                                Form::Picture => td.picture role="cell" { (cell) },
                                Form::Place => td.place role="cell" { (cell) },
                                form => td.(form.class()) role="cell" data-label=(column.title) {
                                    (cell)
                                },
                            }
                        }
                    }
                }
            }
        }
    }
}
