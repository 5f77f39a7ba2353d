-- Known users, whose passwords stand in examples/demo_data.py, and a catalog.

INSERT INTO users (email, name, role, password_hash) VALUES
    ('ada@demo.example', 'Ada', 'admin',
     'scrypt$8GJE5oiYY75UNcjVMvQLyQ==$ehspm4XrtLRiuHG3tJuGGwmw5J84821bQNgf7CbiA2qLp//WQwQz4BIrByRZppw0Z+LFxmobBw/BEOWwkafYhQ=='),
    ('tina@demo.example', 'Tina', 'trader',
     'scrypt$Tdw/Z5i1oL9KpfrBtxL71w==$Bn+EhonJqkne0fwogxY480qx5+3Y5Lu+4HDMpGhyvD1fAlqAGPFcPys9KH8IqSMtzwbAY5IcW7v4QEJ32go5eQ=='),
    ('tom@demo.example', 'Tom', 'trader',
     'scrypt$5KVtEyIR5UaUe8lVBqmP5Q==$JfxoI+RvxG0MNlYKDDNORmFttK2bZ4D57sWi/uXmrp1b3iaBmpxsRg4QFhuClRDrspsDRh148UU6F0i9k+ET7A=='),
    ('vera@demo.example', 'Vera', 'viewer',
     'scrypt$QNxIcEqNmESoSU2t3xsuQg==$IzenjsNqSIsl4xw6da5sXnGmU3RmShwgcpAcRXuxNHmrWYGY9oMZCb8MQLMzRhNafeULPwQaE19x03SnDgGhxg==');

INSERT INTO exchanges (slug, name, kind, active) VALUES
    ('borealis', 'Borealis', 'spot', true),
    ('harbour', 'Harbour', 'spot', true),
    ('kestrel', 'Kestrel', 'spot', true),
    ('meridian', 'Meridian', 'futures', true),
    ('pampero', 'Pampero', 'futures', true),
    ('zephyr', 'Zephyr', 'spot', false);

INSERT INTO symbols (exchange_id, name)
SELECT id, unnest(names)
FROM exchanges
JOIN (VALUES
    ('borealis', ARRAY['BTC-EUR', 'ETH-EUR']),
    ('harbour', ARRAY['BTC-USDT', 'SOL-USDT']),
    ('kestrel', ARRAY['BTC-USDT', 'ETH-USDT', 'SOL-USDT']),
    ('meridian', ARRAY['BTC-USDT', 'ETH-USDT']),
    ('pampero', ARRAY['BTC-USD'])
) AS listed (slug, names) USING (slug);

INSERT INTO bots (owner_id, name, exchange, symbol, strategy, status)
SELECT users.id, bots.name, 'kestrel', symbol, strategy, status
FROM users
JOIN (VALUES
    ('tina@demo.example', 'night grid', 'BTC-USDT', 'grid', 'stopped'),
    ('tom@demo.example', 'momentum one', 'ETH-USDT', 'momentum', 'running')
) AS bots (email, name, symbol, strategy, status) USING (email);
