"""What operators define: programs, voucher templates, drops; and what they do to them."""
