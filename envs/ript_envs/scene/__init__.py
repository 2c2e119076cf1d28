"""What a picture of a MuJoCo scene does not need, and a software renderer should be spared."""
