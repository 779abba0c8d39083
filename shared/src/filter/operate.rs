//! What is done with values: paid for by their size, and then left to the library, but for what goes through lists and maps.

use std::{
    cmp::Ordering,
    sync::{Arc, LazyLock},
};

use cel::{
    Context, Env, ExecutionError, IdedExpr, Value,
    common::{
        ast::{CallExpr, Expr, operators},
        value::Val,
    },
    objects::{Key, KeyRef, Map},
};

use super::evaluate::{Evaluated, Evaluation, Stop, failed, kind};

/// What handing values to the library costs, and a function.
const OPERATION: usize = 2;
const CALL: usize = 8;
/// The most characters of what the library says of a failure: it may quote a value.
const MAX_REASON: usize = 200;

static LIBRARY: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

impl Evaluation<'_> {
    /// An operator of two operands.
    pub(super) fn operated(&mut self, operator: &str, left: Value, right: Value) -> Evaluated {
        match operator {
            operators::EQUALS => self.equal(&left, &right).map(Value::Bool),
            operators::NOT_EQUALS => Ok(Value::Bool(!self.equal(&left, &right)?)),
            operators::IN => self.is_in(&left, &right).map(Value::Bool),
            operators::INDEX => indexed(&left, &right),
            operators::ADD => self.sum(left, right),
            operators::LESS => Ok(Value::Bool(self.order(&left, &right)?.is_lt())),
            operators::LESS_EQUALS => Ok(Value::Bool(self.order(&left, &right)?.is_le())),
            operators::GREATER => Ok(Value::Bool(self.order(&left, &right)?.is_gt())),
            operators::GREATER_EQUALS => Ok(Value::Bool(self.order(&left, &right)?.is_ge())),
            _ => self.reckoned(operator, &left, &right),
        }
    }

    fn equal(&mut self, left: &Value, right: &Value) -> Evaluated<bool> {
        self.pay(1)?;
        match (left, right) {
            (Value::List(left), Value::List(right)) => {
                if left.len() != right.len() {
                    return Ok(false);
                }
                for (left, right) in left.iter().zip(right.iter()) {
                    if !self.equal(left, right)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Value::Map(left), Value::Map(right)) => self.equal_maps(left, right),
            (Value::String(left), Value::String(right)) => {
                self.pay(left.len().min(right.len()) / 64)?;
                Ok(left == right)
            }
            (Value::Int(left), Value::Int(right)) => Ok(left == right),
            (Value::List(_) | Value::Map(_) | Value::String(_), _)
            | (_, Value::List(_) | Value::Map(_) | Value::String(_)) => Ok(false),
            _ => {
                self.pay(OPERATION)?;
                Ok(matches!((scalar(left), scalar(right)), (Some(left), Some(right)) if left.equals(&*right)))
            }
        }
    }

    /// By the order of their keys, so that a comparison always takes the same steps.
    fn equal_maps(&mut self, left: &Map, right: &Map) -> Evaluated<bool> {
        if left.map.len() != right.map.len() {
            return Ok(false);
        }
        self.pay(left.map.len())?;
        let mut members: Vec<(&Key, &Value)> = left.map.iter().collect();
        members.sort_unstable_by_key(|(key, _)| *key);
        for (key, value) in members {
            self.pay(key_size(key))?;
            match right.get(key) {
                Some(other) if self.equal(value, other)? => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn is_in(&mut self, value: &Value, container: &Value) -> Evaluated<bool> {
        match container {
            Value::List(list) => {
                for element in list.iter() {
                    if self.equal(value, element)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Value::Map(map) => {
                self.pay(text_size(value))?;
                Ok(looked_up(map, value)?.is_some())
            }
            other => failed(format!("nothing is in {}", kind(other))),
        }
    }

    fn sum(&mut self, left: Value, right: Value) -> Evaluated {
        match (left, right) {
            (Value::List(left), Value::List(right)) => {
                self.pay(left.len() + right.len())?;
                Ok(Value::List(
                    left.iter()
                        .chain(right.iter())
                        .cloned()
                        .collect::<Vec<_>>()
                        .into(),
                ))
            }
            (Value::String(left), Value::String(right)) => {
                self.pay((left.len() + right.len()) / 16)?;
                Ok(Value::String(Arc::new(format!("{left}{right}"))))
            }
            (left, right) => self.reckoned(operators::ADD, &left, &right),
        }
    }

    fn order(&mut self, left: &Value, right: &Value) -> Evaluated<Ordering> {
        if let (Value::String(left), Value::String(right)) = (left, right) {
            self.pay(left.len().min(right.len()) / 64)?;
            return Ok(left.cmp(right));
        }
        if let (Value::Int(left), Value::Int(right)) = (left, right) {
            return Ok(left.cmp(right));
        }
        self.pay(OPERATION)?;
        let ordered = match (scalar(left), scalar(right)) {
            (Some(left), Some(right)) => left.as_comparer().and_then(|left| left.compare(&*right).ok()),
            _ => None,
        };
        match ordered {
            Some(ordering) => Ok(ordering),
            None => failed(format!("{} cannot be compared with {}", kind(left), kind(right))),
        }
    }

    /// Arithmetic.
    fn reckoned(&mut self, operator: &str, left: &Value, right: &Value) -> Evaluated {
        self.pay(OPERATION + (text_size(left) + text_size(right)) * 4)?;
        let unfit = || {
            let operator = operator.trim_matches('_');
            failed(format!(
                "`{operator}` does not take {} and {}",
                kind(left),
                kind(right)
            ))
        };
        let (Some(one), Some(other)) = (scalar(left), scalar(right)) else {
            return unfit();
        };
        let other = &*other;
        let reckoned = match operator {
            operators::ADD => one.as_adder().map(|one| one.add(other)),
            operators::SUBSTRACT => one.as_subtractor().map(|one| one.sub(other)),
            operators::MULTIPLY => one.as_multiplier().map(|one| one.mul(other)),
            operators::DIVIDE => one.as_divider().map(|one| one.div(other)),
            operators::MODULO => one.as_modder().map(|one| one.modulo(other)),
            _ => None,
        };
        match reckoned {
            Some(Ok(value)) => valued(&*value),
            Some(Err(ExecutionError::Overflow(..))) => failed("a number grows out of its range"),
            Some(Err(ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_))) => {
                failed("it divides by zero")
            }
            _ => unfit(),
        }
    }

    pub(super) fn negated(&mut self, value: &Value) -> Evaluated {
        self.pay(OPERATION)?;
        let operand = scalar(value);
        let negated = operand
            .as_ref()
            .and_then(|operand| operand.as_negator()?.negate().ok());
        match negated {
            Some(value) => valued(&*value),
            None => failed(format!("{} has no negative", kind(value))),
        }
    }

    /// A function, called on a value or not.
    pub(super) fn function(&mut self, name: &str, target: Option<Value>, arguments: Vec<Value>) -> Evaluated {
        let is_member = target.is_some();
        let operands: Vec<Value> = target.into_iter().chain(arguments).collect();
        match (name, operands.as_slice()) {
            ("size", [Value::List(list)]) => Ok(count(list.len())),
            ("size", [Value::Map(map)]) => Ok(count(map.map.len())),
            ("size", [Value::String(text)]) => {
                self.pay(text.len() / 32)?;
                Ok(count(text.chars().count()))
            }
            ("contains", [Value::String(text), Value::String(part)]) => {
                self.pay((text.len() + part.len()) / 16)?;
                Ok(Value::Bool(text.contains(part.as_str())))
            }
            ("startsWith", [Value::String(text), Value::String(part)]) => {
                self.pay(part.len() / 64)?;
                Ok(Value::Bool(text.starts_with(part.as_str())))
            }
            ("endsWith", [Value::String(text), Value::String(part)]) => {
                self.pay(part.len() / 64)?;
                Ok(Value::Bool(text.ends_with(part.as_str())))
            }
            ("matches", [Value::String(text), Value::String(pattern)]) => {
                let Some(pattern) = self.program.patterns.get(pattern.as_str()) else {
                    return failed("a pattern is not known");
                };
                self.pay(pattern.steps(text))?;
                Ok(Value::Bool(pattern.is_match(text)))
            }
            _ => self.of_the_library(name, is_member, operands),
        }
    }

    /// The library looks for the function that takes these, and calls it.
    fn of_the_library(&mut self, name: &str, is_member: bool, operands: Vec<Value>) -> Evaluated {
        let sizes: usize = operands.iter().map(text_size).sum();
        self.pay(CALL + sizes * 4)?;
        let kinds = operands.iter().map(kind).collect::<Vec<_>>().join(", ");
        let unfit = || failed(format!("`{name}` does not take {kinds}"));
        let names = ["a", "b", "c"];
        let mut context = Context::with_env(Arc::clone(&LIBRARY));
        let mut called = Vec::with_capacity(operands.len());
        for (name, operand) in names.into_iter().zip(operands) {
            let Some(operand) = scalar(&operand) else {
                return unfit();
            };
            context.add_variable_as_val(name, operand);
            called.push(IdedExpr {
                id: 0,
                expr: Expr::Ident(name.to_owned()),
            });
        }
        let target = (is_member && !called.is_empty()).then(|| Box::new(called.remove(0)));
        let call = IdedExpr {
            id: 0,
            expr: Expr::Call(CallExpr {
                func_name: name.to_owned(),
                target,
                args: called,
            }),
        };
        match Value::resolve_val(&call, &context) {
            Ok(value) => valued(&*value),
            Err(ExecutionError::NoSuchOverload(_)) => unfit(),
            Err(ExecutionError::FunctionError { message, .. }) => {
                failed(format!("`{name}` fails: {}", shortened(&message)))
            }
            Err(error) => failed(shortened(&error.to_string())),
        }
    }
}

fn indexed(container: &Value, index: &Value) -> Evaluated {
    match container {
        Value::List(list) => {
            let place = match index {
                Value::Int(place) => usize::try_from(*place).ok(),
                Value::UInt(place) => usize::try_from(*place).ok(),
                Value::Float(place) => whole(*place).and_then(|place| usize::try_from(place).ok()),
                other => return failed(format!("a list has no element at {}", kind(other))),
            };
            let found = place.and_then(|place| list.get(place)).cloned();
            found.map_or_else(|| failed("a list has no element at that index"), Ok)
        }
        Value::Map(map) => looked_up(map, index)?.cloned().map_or_else(
            || match index {
                Value::String(name) => failed(format!("there is no `{}`", shortened(name))),
                _ => failed("a map has no such key"),
            },
            Ok,
        ),
        other => failed(format!("{} has no elements", kind(other))),
    }
}

/// What a map has at a key. Keys are whole numbers of either kind; a double that is one finds it.
fn looked_up<'m>(map: &'m Map, key: &Value) -> Evaluated<Option<&'m Value>> {
    Ok(match key {
        Value::Float(number) => whole(*number).and_then(|number| {
            let as_int = i64::try_from(number)
                .ok()
                .and_then(|int| map.get(&KeyRef::Int(int)));
            as_int.or_else(|| {
                u64::try_from(number)
                    .ok()
                    .and_then(|uint| map.get(&KeyRef::Uint(uint)))
            })
        }),
        Value::String(name) => map.get(&KeyRef::String(name)),
        other => map.get(&super::evaluate::key(other.clone())?),
    })
}

/// A double without a fraction, as it is.
#[expect(
    clippy::cast_possible_truncation,
    reason = "it is within the range of 65 bits, and whole"
)]
fn whole(number: f64) -> Option<i128> {
    (number.fract() == 0.0 && number.abs() < 2.0_f64.powi(64)).then_some(number as i128)
}

/// As the library has it. Lists and maps are not handed to it: copying one is not paid for.
fn scalar(value: &Value) -> Option<Box<dyn Val>> {
    match value {
        Value::List(_) | Value::Map(_) => None,
        value => value.clone().try_into().ok(),
    }
}

fn valued(value: &(dyn Val + '_)) -> Evaluated {
    Value::try_from(value).map_err(|error| Stop::Failed(shortened(&error.to_string())))
}

/// What a value's text costs to look at.
fn text_size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() / 64,
        _ => 0,
    }
}

fn key_size(key: &Key) -> usize {
    match key {
        Key::String(text) => text.len() / 64,
        _ => 0,
    }
}

fn count(size: usize) -> Value {
    Value::Int(i64::try_from(size).unwrap_or(i64::MAX))
}

fn shortened(text: &str) -> String {
    let clean = text.chars().filter(|c| !c.is_control());
    clean.take(MAX_REASON).collect()
}
