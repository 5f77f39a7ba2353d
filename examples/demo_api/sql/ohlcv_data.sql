-- Six hours of candles for two symbols, from midnight UTC of 5 January 2026. BTC-USDT lacks those of
-- 02:30 to 02:44.

INSERT INTO candles (exchange, symbol, opened_at, open, high, low, close, volume)
SELECT
    'kestrel', symbol, '2026-01-05 00:00+00'::timestamptz + minute * interval '1 minute',
    price, price + 2 * unit, price - 3 * unit, price + (minute % 3 - 1) * unit, 1 + minute % 5
FROM (VALUES ('BTC-USDT', 64000, 10), ('ETH-USDT', 3200, 0.5)) AS symbols (symbol, base, unit)
CROSS JOIN generate_series(0, 359) AS minute
CROSS JOIN LATERAL (SELECT base + (minute % 60) * unit AS price) AS prices
WHERE NOT (symbol = 'BTC-USDT' AND minute BETWEEN 150 AND 164);

-- Tom (the third user of the other database) has traded before.
INSERT INTO trades (owner_id, exchange, symbol, side, price, amount, fee, executed_at) VALUES
    (3, 'kestrel', 'BTC-USDT', 'buy', 64100, 0.2, 1.28, '2026-01-05 00:10+00'),
    (3, 'kestrel', 'BTC-USDT', 'sell', 64300, 0.2, 1.29, '2026-01-05 00:40+00');
