-- Candles of one minute, and trades.

CREATE TABLE candles (
    exchange  text NOT NULL,
    symbol    text NOT NULL,
    opened_at timestamptz NOT NULL CHECK (opened_at = date_trunc('minute', opened_at)),
    open      numeric NOT NULL,
    high      numeric NOT NULL,
    low       numeric NOT NULL,
    close     numeric NOT NULL,
    volume    numeric NOT NULL CHECK (volume >= 0),
    PRIMARY KEY (exchange, symbol, opened_at),
    CHECK (0 < low AND low <= least(open, close) AND greatest(open, close) <= high)
);

CREATE TABLE trades (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner_id    bigint NOT NULL,  -- a user of the other database
    exchange    text NOT NULL,
    symbol      text NOT NULL,
    side        text NOT NULL CHECK (side IN ('buy', 'sell')),
    price       numeric NOT NULL CHECK (price > 0),
    amount      numeric NOT NULL CHECK (amount > 0),
    fee         numeric NOT NULL DEFAULT 0 CHECK (fee >= 0),
    executed_at timestamptz NOT NULL
);

CREATE INDEX ON trades (owner_id, executed_at);
