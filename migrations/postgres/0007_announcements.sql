-- Events of the system's own, written with what they tell of, and taken in by workers from here.
CREATE TABLE announcements (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    type text NOT NULL,
    payload text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

-- Since when a subscription has failed without one success. There is a row while it does.
CREATE TABLE subscription_failures (
    subscription_id uuid PRIMARY KEY,
    failing_since timestamptz NOT NULL DEFAULT now()
);
