//! The API's description, written where its routes are: a route cannot be served without one.
//!
//! [`Routes`] takes a handler together with what it is ([`Doc`]). What a handler's signature says is not said again:
//! its extractors ([`Input`]) tell of keys and scopes, ids, parameters and bodies, and of the problems that each may answer;
//! its answer ([`Output`]) tells of the status and the shape. The rest is in the [`Doc`].
//!
//! [`document`] makes one OpenAPI 3.1 document of the routes of the whole deployment. That is kept in the tree, for every role to
//! serve ([`super::reference`]), and compared by a test with what the code makes.

mod document;
mod operation;
mod schemas;

use axum::{
    Router,
    handler::Handler,
    routing::{self, MethodRouter},
};
use http::Method;

pub use self::{
    document::document,
    operation::{Described, Header, Input, Operation, Output, Parameter, Parameters, Security},
    schemas::{AnyEventId, Mask, NameText, Overlap, TEXT},
};

/// Something that is said of a route.
type Step = Box<dyn Fn(&mut Operation<'_>) + Send + Sync>;
/// What a handler's signature says.
type Signature = fn(&mut Operation<'_>);

/// What a route is, beyond what its handler's signature says.
pub struct Doc {
    id: &'static str,
    summary: &'static str,
    text: &'static str,
    steps: Vec<Step>,
}

/// A route's name among programs (`lowerCamelCase`, kept for ever), and a line on it for people.
pub fn doc(id: &'static str, summary: &'static str) -> Doc {
    Doc {
        id,
        summary,
        text: "",
        steps: Vec::new(),
    }
}

impl Doc {
    /// More on it, in Markdown.
    #[must_use]
    pub fn text(mut self, text: &'static str) -> Self {
        self.text = text;
        self
    }

    /// What else is to be said.
    #[must_use]
    pub fn with(mut self, step: impl Fn(&mut Operation<'_>) + Send + Sync + 'static) -> Self {
        self.steps.push(Box::new(step));
        self
    }

    /// A problem that it may answer, and when.
    #[must_use]
    pub fn problem(self, code: super::Code, when: &'static str) -> Self {
        self.with(move |operation| operation.problem(code, when))
    }

    /// What it answers, where the handler's type does not say.
    #[must_use]
    pub fn answers<T: schemars::JsonSchema>(self, status: u16) -> Self {
        self.with(move |operation| operation.answer::<T>(status))
    }

    /// Where its answers with this status lead: another route's name, and where in them the parameters of that one are.
    #[must_use]
    pub fn link(
        self,
        status: u16,
        operation: &'static str,
        parameters: &'static [(&'static str, &'static str)],
    ) -> Self {
        self.with(move |described| described.link(status, operation, parameters))
    }

    /// A header of its answers with this status.
    #[must_use]
    pub fn header(self, status: u16, header: Header) -> Self {
        self.with(move |operation| operation.header(status, header))
    }
}

/// A route as it is registered.
pub struct Registered {
    method: Method,
    path: &'static str,
    tag: &'static str,
    doc: Doc,
    describe: Signature,
}

/// Routes, each with its description.
pub struct Routes<S = ()> {
    tag: &'static str,
    router: Router<S>,
    operations: Vec<Registered>,
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// None yet, of this group.
    pub fn of(tag: &'static str) -> Self {
        Self {
            tag,
            router: Router::new(),
            operations: Vec::new(),
        }
    }

    /// With what is under this path.
    #[must_use]
    pub fn at(mut self, path: &'static str, methods: Methods<S>) -> Self {
        self.router = self.router.route(path, methods.router);
        let tag = self.tag;
        self.operations.extend(
            methods
                .operations
                .into_iter()
                .map(|(method, doc, describe)| Registered {
                    method,
                    path,
                    tag,
                    doc,
                    describe,
                }),
        );
        self
    }

    /// With all of these.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.operations.extend(other.operations);
        self
    }

    /// What serves them.
    pub fn into_router(self) -> Router<S> {
        self.router
    }

    /// What they are.
    pub fn into_operations(self) -> Vec<Registered> {
        self.operations
    }
}

/// What a path does, by method.
pub struct Methods<S> {
    router: MethodRouter<S>,
    operations: Vec<(Method, Doc, Signature)>,
}

macro_rules! methods {
    ($($(#[$docs:meta])* $method:ident $chained:ident $name:ident;)*) => {
        $($(#[$docs])*
        pub fn $method<H, T, A, S>(handler: H, doc: Doc) -> Methods<S>
        where
            H: Handler<T, S> + Described<A>,
            T: 'static,
            S: Clone + Send + Sync + 'static,
        {
            Methods {
                router: routing::$method(handler),
                operations: vec![(Method::$name, doc, <H as Described<A>>::describe)],
            }
        })*

        impl<S: Clone + Send + Sync + 'static> Methods<S> {
            $($(#[$docs])*
            #[must_use]
            pub fn $chained<H, T, A>(mut self, handler: H, doc: Doc) -> Self
            where
                H: Handler<T, S> + Described<A>,
                T: 'static,
            {
                self.router = self.router.$method(handler);
                self.operations.push((Method::$name, doc, <H as Described<A>>::describe));
                self
            })*
        }
    };
}

methods! {
    /// For `GET` and `HEAD`.
    get and_get GET;
    /// For `POST`.
    post and_post POST;
    /// For `PATCH`.
    patch and_patch PATCH;
    /// For `PUT`.
    put and_put PUT;
    /// For `DELETE`.
    delete and_delete DELETE;
}
