"""QueST: discrete skill tokens, an autoregressive prior over them. Source: Mete et al. 2024."""
