-- Users, exchanges and bots.

CREATE TABLE users (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email         text NOT NULL UNIQUE CHECK (email = lower(email)),
    name          text NOT NULL,
    role          text NOT NULL CHECK (role IN ('admin', 'trader', 'viewer')),
    password_hash text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE exchanges (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slug   text NOT NULL UNIQUE,
    name   text NOT NULL,
    kind   text NOT NULL CHECK (kind IN ('spot', 'futures')),
    active boolean NOT NULL DEFAULT true
);

CREATE TABLE symbols (
    exchange_id bigint NOT NULL REFERENCES exchanges ON DELETE CASCADE,
    name        text NOT NULL CHECK (name LIKE '%-%'),
    PRIMARY KEY (exchange_id, name)
);

CREATE TABLE bots (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner_id   bigint NOT NULL REFERENCES users ON DELETE CASCADE,
    name       text NOT NULL,
    exchange   text NOT NULL REFERENCES exchanges (slug) ON UPDATE CASCADE,
    symbol     text NOT NULL,
    strategy   text NOT NULL,
    status     text NOT NULL DEFAULT 'stopped' CHECK (status IN ('stopped', 'running')),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (owner_id, name)
);
