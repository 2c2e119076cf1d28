"""Success rates, paired comparison, videos."""
