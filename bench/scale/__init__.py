"""Does it stay fast where there is much of everything: vouchers, drops, requests, holders?"""
