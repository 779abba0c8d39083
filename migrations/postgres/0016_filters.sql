-- Which of the events of its types a subscription wants: an expression that was checked when it was saved. NULL is all.
ALTER TABLE subscriptions ADD COLUMN filter text;
