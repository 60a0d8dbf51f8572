def test_one_row_per_model(script, capsys):
    measured = {"psnr": {"value": 20.125}, "lpips_alex": {"value": 0.25}, "ssim": {"value": 0.5}}
    metrics = {
        "fd_vgg16_reconstructed": 100.4,
        "fd_vgg16_generated": 200.6,
        "fd_vgg16_noise": 300.0,
        "relative_flow_loss": 0.4321,
        "copied_share": 0.05,
        "nearest_samples": 7.0,
    }
    results = {"models": {"ae": {"metrics": metrics}}, "reconstruction": {"ae": measured}}
    script("bench_ablation").print_table(results)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert lines[2] == "| ae | 20.12 | 0.250 | 0.500 | 100 | 201 | 300 | 0.432 | 0.050 |"
