"""vouchd: the kernel says who is calling, registration entries say what that caller is named."""
