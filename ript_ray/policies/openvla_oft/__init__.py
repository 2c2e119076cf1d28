"""OpenVLA-OFT: a 7 B vision-language-action model whose action chunks are regressed, not decoded; see decision 22."""
